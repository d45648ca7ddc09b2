//! What makes several servers one: who leads, who is alive.

pub mod alive;
pub mod duty;
pub mod leader;
mod lease;
#[cfg(test)]
mod tests;
