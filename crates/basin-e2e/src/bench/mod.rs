//! Measurements against what people use today, as ratios within one run.

pub mod io;
pub mod report;
pub mod results;
