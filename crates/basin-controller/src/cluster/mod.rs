//! What makes several servers one: who leads, who is alive.

pub mod alive;
pub mod drains;
pub mod duty;
pub mod leader;
mod lease;
pub mod seat;
#[cfg(test)]
mod tests;
pub mod voters;
