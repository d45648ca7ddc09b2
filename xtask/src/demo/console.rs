//! Types at the console of a micro guest, as a person would.

use std::time::Duration;

use anyhow::Result;

use super::run::Runner;
use super::running::Running;

/// Emulated and on a busy machine; it takes a few seconds elsewhere.
pub const BOOTS_WITHIN: Duration = Duration::from_secs(180);
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

const PROMPT: &str = "micro# ";

/// Types a line once the guest takes lines, and waits for what it prints.
pub fn type_line(basin: &Runner, vm: &str, line: &str, answer: &str) -> Result<()> {
    let mut console = quiet_until_prompt(basin, vm)?;
    console.type_line(line)?;
    console.hear(answer, ANSWERS_WITHIN)?;
    console.hear(PROMPT, ANSWERS_WITHIN)
}

/// The console begins with its history, which was shown before.
fn quiet_until_prompt(basin: &Runner, vm: &str) -> Result<Running> {
    let mut console = basin.spawn_basin(&["vm", "console", vm])?.marked("| ").silent();
    console.type_line("")?;
    console.hear(PROMPT, BOOTS_WITHIN)?;
    // Until the history and the answer to the empty line have come.
    console.drain(Duration::from_secs(1))?;
    console.skip();
    Ok(console)
}
