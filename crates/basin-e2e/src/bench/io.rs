//! blockd beside `qemu-storage-daemon`: the same raw file, the same front end, no guest.

mod server;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::report::{Better, Figure};
use super::results;
use server::{Kind, Server};
use workload::{CASES, Case, Sample, Workload};

const PEER: &str = "qemu-storage-daemon";

/// How to measure.
#[derive(Debug, Clone, Args)]
pub struct IoArgs {
    /// The released binary; runs `basin blockd`.
    #[arg(long, env = "BASIN_BIN")]
    basin: PathBuf,
    /// Instead of `--basin`: a program that takes a run directory and is blockd.
    #[arg(long)]
    blockd: Option<PathBuf>,
    /// Where the file is made.
    #[arg(long, default_value_os_t = results::dir())]
    dir: PathBuf,
    /// How often each case is measured on each side.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The size of the file.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// The peer's way of doing I/O: io_uring, native or threads.
    #[arg(long, default_value = "io_uring")]
    peer_aio: String,
    /// With io_uring the front end looks for completions instead of sleeping.
    #[arg(long)]
    poll: bool,
}

pub fn run(args: &IoArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).context("cannot make the directory")?;
    let file = std::path::absolute(args.dir.join("io.raw"))?;
    workload::fill(&file, args.mib << 20)?;
    let outcome = measure(args, &file);
    std::fs::remove_file(&file)?;
    let figures = outcome?;
    results::publish("io", &figures)
}

fn measure(args: &IoArgs, file: &Path) -> anyhow::Result<Vec<Figure>> {
    let ours = match &args.blockd {
        Some(program) => Kind::Blockd(program.clone()),
        None => Kind::Basin(args.basin.clone()),
    };
    let theirs = Kind::QemuStorageDaemon { aio: args.peer_aio.clone() };
    let cases: Vec<&Case> = CASES.iter().filter(|c| c.name.contains(&args.only)).collect();
    let mut samples = vec![(Vec::new(), Vec::new()); cases.len()];
    for run in 0..args.runs {
        for (case, (basin, peer)) in cases.iter().zip(&mut samples) {
            // Side by side, and each goes first as often as the other.
            let one = |kind| sample(kind, file, case, args, run as u64);
            if run % 2 == 0 {
                basin.push(one(&ours)?);
                peer.push(one(&theirs)?);
            } else {
                peer.push(one(&theirs)?);
                basin.push(one(&ours)?);
            }
        }
    }
    let mut figures = Vec::new();
    for (case, (basin, peer)) in cases.iter().zip(&samples) {
        let mut add = |unit, of: fn(&Sample) -> f64, better| {
            let values = |samples: &[Sample]| samples.iter().map(of).collect::<Vec<_>>();
            let both = (values(basin), values(peer));
            figures.push(Figure::new(case.name, unit, (&both.0, &both.1), PEER, (1.0, better)));
        };
        add("IOPS", |s| s.iops, Better::Higher);
        add("us CPU/IO", |s| s.cpu_us, Better::Lower);
    }
    Ok(figures)
}

fn sample(
    kind: &Kind,
    file: &Path,
    case: &Case,
    args: &IoArgs,
    seed: u64,
) -> anyhow::Result<Sample> {
    let server = Server::start(kind, file)?;
    let mut workload = Workload::connect(&server.socket(), case, args.poll, seed)?;
    workload.run(Duration::from_millis(200))?;
    let before = server.cpu()?;
    let (count, elapsed) = workload.run(Duration::from_secs_f64(args.seconds))?;
    let cpu = server.cpu()? - before;
    let per_io = |d: Duration| d.as_secs_f64() * 1e6 / count as f64;
    Ok(Sample { iops: count as f64 / elapsed.as_secs_f64(), cpu_us: per_io(cpu) })
}
