//! Exhaustive checks of the lane protocol on small scenes, and of the checks themselves by planted flaws.

mod checker;
mod flaws;
mod protocol;
