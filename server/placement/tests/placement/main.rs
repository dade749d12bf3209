//! Behaviour of the planner: single situations, random clusters played to their end, and a large one; and splits.

mod cluster;
mod random;
mod rest;
mod scale;
mod settling;
mod situations;
mod splits;
