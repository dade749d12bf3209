//! Behaviour of the planner: single situations, random clusters played to their end, and a large one.

mod cluster;
mod random;
mod rest;
mod scale;
mod situations;
