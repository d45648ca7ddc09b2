//! Shows Basin's main job on real guests; `make demo` builds all that it needs first.

use std::path::Path;

use anyhow::{Result, bail};

use crate::shell::{command, quietly};
use crate::steps::Steps;
use crate::{images, test};

#[derive(clap::Args)]
pub struct Options {
    /// End after the last step instead of staying up until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// How many servers take part
    #[arg(long, default_value_t = 1)]
    pub servers: u16,
}

pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    if options.servers != 1 {
        bail!("SERVERS={}: the demo knows one server", options.servers);
    }
    let mut steps = Steps::default();
    let outcome = all(workspace, &mut steps);
    println!("\n{}", steps.summary());
    outcome
}

fn all(workspace: &Path, steps: &mut Steps) -> Result<()> {
    steps.step("guest images", || images::run(workspace, &[]))?;
    steps.step("the release binary runs", || {
        quietly(command("timeout", &[&"60", &test::release_binary(workspace), &"--version"]))
    })?;
    Ok(())
}
