//! Pure. Selecting by labels.

use basin_model::Labels;
use basin_model::task::Problem;

use crate::app::problems;

/// What each label has to be.
pub type Selector = Vec<(String, String)>;

/// Out of `label=KEY=VALUE` pairs.
pub fn selector(pairs: Vec<(String, String)>) -> Result<Selector, Problem> {
    let parse = |(_, text): (String, String)| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(problems::malformed(format!("query: label '{text}' is not KEY=VALUE"))),
    };
    pairs.into_iter().map(parse).collect()
}

pub fn matches(selector: &Selector, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
