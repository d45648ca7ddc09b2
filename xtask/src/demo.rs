//! Shows Basin's main job on real guests; `make demo` builds all that it needs first.
//!
//! All happens in a place of its own: network namespaces, cgroups and a directory with
//! one name. What an earlier run left there, however it ended, the next removes.

mod cluster;
mod console;
mod debian;
mod forward;
mod import;
mod micro;
mod place;
mod remove;
mod run;
mod running;
mod server;
mod single;
mod stop;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::steps::Steps;
use crate::test::release_binary;
use place::Place;
use stop::Stop;

#[derive(clap::Args)]
pub struct Options {
    /// End after the last step instead of staying up until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// How many servers take part: 3, which become one, or 1
    #[arg(long, default_value_t = 3)]
    pub servers: u16,
    /// The program to show, instead of target/release/basin
    #[arg(long, hide = true)]
    pub binary: Option<PathBuf>,
}

/// What every demo works with.
struct Setting<'a> {
    workspace: &'a Path,
    place: &'a Place,
    basin: &'a Path,
    /// Ends after the last step.
    exit: bool,
    stop: &'a Stop,
}

/// A step of the demo: what is typed, what comes, and how long all of it took.
fn step<T>(steps: &mut Steps, name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!();
    let start = Instant::now();
    let done = steps.step(name, run);
    let word = if done.is_ok() { "done" } else { "FAILED" };
    println!("    -- {word} after {:.1} s", start.elapsed().as_secs_f64());
    done
}

/// What a newcomer needs to know to follow.
fn say(text: &str) {
    println!("    # {text}");
}

pub fn run(workspace: &Path, options: &Options) -> Result<()> {
    let story: fn(&Setting<'_>, &mut Steps) -> Result<()> = match options.servers {
        1 => single::all,
        3 => cluster::all,
        n => bail!("SERVERS={n}: the demo shows 3 servers that become one, or 1"),
    };
    let binary = options.binary.clone().unwrap_or_else(|| release_binary(workspace));
    let binary = std::fs::canonicalize(&binary)
        .with_context(|| format!("{} is not there: run make build", binary.display()))?;
    let stop = Stop::catch()?;
    let place = Place::claim().context("failed: make a place for the demo")?;
    println!("The demo's own place is {}:", place.site().dir().display());
    println!(
        "network namespaces and cgroups {0}; this machine's network stays as it is.",
        place.site().name()
    );
    let mut steps = Steps::default();
    let setting =
        Setting { workspace, place: &place, basin: &binary, exit: options.exit, stop: &stop };

    let outcome = story(&setting, &mut steps);
    println!("\n{}", steps.summary());
    if let Err(error) = &outcome
        && !stop.asked()
    {
        match place.keep_logs(&binary.with_file_name("demo-logs")) {
            Ok(logs) => println!("{error:#}\n\nThe logs are in {}\n", logs.display()),
            Err(why) => println!("{error:#}\n\nThe logs could not be kept: {why:#}\n"),
        }
    }
    println!("==> cleaning up");
    let cleaned = place.remove().context("failed: clean up");
    match outcome {
        Ok(()) => cleaned,
        Err(_) if stop.asked() => bail!("interrupted before the demo was over"),
        Err(_) => bail!("the demo failed"),
    }
}
