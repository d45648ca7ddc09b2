//! Running guests move between two servers: `basin vm migrate`, plain QEMU driven by hand
//! with the settings an operator would try, and `virsh migrate --live` between two libvirtd.
//!
//! What counts is the longest silence of the heartbeat that the guest sends every 5 ms,
//! as the network's middle hears it, and the time that all of it takes.
//!
//! `BENCH_RUNS` says how many moves of each kind, `BENCH_CASE` which guests alone, such as
//! `256 MiB, idle`.

mod support;

use std::time::Duration;

use anyhow::Context;
use basin_e2e::bench::report::{Better, Figure, Target, median};
use basin_e2e::bench::results;
use basin_e2e::observe::Collector;
use support::by_basin::{ByBasin, Servers};
use support::by_hand::{ByHand, Tuning};
use support::by_virsh::ByVirsh;
use support::mover::{Guest, Load, Move, Mover, Outcome};
use support::pair::Pair;

/// What has not come to its end by then never will.
const LIMIT: Duration = Duration::from_secs(20);

const SIZES: [u64; 2] = [256, 1024];
const LOADS: [Load; 4] =
    [Load::Idle, Load::MibPerSecond(60), Load::MibPerSecond(200), Load::Unthrottled];

const VIRSH: &str = "virsh";

/// Who moves guests, and where these are heard.
struct Way<'a> {
    name: &'static str,
    mover: Box<dyn Mover + 'a>,
    collector: &'a Collector,
    ip: String,
}

/// What is measured of a move.
type Value = fn(&Move) -> f64;

/// How it went, way by way.
type Moves = Vec<(&'static str, Vec<Move>)>;

fn main() -> anyhow::Result<()> {
    let runs = std::env::var("BENCH_RUNS").ok().map_or(Ok(5), |n| n.parse())?;
    let only = std::env::var("BENCH_CASE").unwrap_or_default();
    let (pair, servers) = (Pair::new(), Servers::new());
    let mut ways = ways(&pair, &servers)?;
    let mut figures = Vec::new();
    for mib in SIZES {
        for load in LOADS {
            let case = format!("{mib} MiB, {}", load.words());
            if !case.contains(&only) {
                continue;
            }
            let mut all = Moves::new();
            for way in &mut ways {
                let name = way.name;
                let guest =
                    Guest { mib, load, ip: way.ip.clone(), heartbeat: way.collector.address };
                let outcome = guest.moves(way.mover.as_mut(), way.collector, runs, LIMIT);
                match outcome.with_context(|| format!("{case}, {name}"))? {
                    Outcome::Moved(moves) => all.push((name, moves)),
                    Outcome::Endless => println!("{case}, {name}: does not come to its end"),
                    Outcome::Damaged(how) => println!("{case}, {name}: damages its guest: {how}"),
                }
            }
            figures.extend(rows(&case, all));
        }
    }
    results::publish("migrate", &figures)
}

fn ways<'a>(pair: &'a Pair, servers: &'a Servers) -> anyhow::Result<Vec<Way<'a>>> {
    let direct = |name, mover| Way {
        name,
        mover,
        collector: &pair.collector,
        ip: format!("{}/24", support::pair::GUEST),
    };
    let by_hand = |name, tuning| direct(name, Box::new(ByHand::new(&pair.cluster, tuning)));
    let basin = Box::new(ByBasin::new(&servers.cluster));
    Ok(vec![
        Way { name: "Basin", mover: basin, collector: &servers.collector, ip: "dhcp".to_owned() },
        by_hand("QEMU, defaults", Tuning::Defaults),
        by_hand("QEMU, all of the link, 30 ms", Tuning::Fast),
        by_hand("QEMU, post-copy", Tuning::PostCopy),
        direct(VIRSH, Box::new(ByVirsh::new(&pair.cluster)?)),
    ])
}

/// Basin's against the best by hand and against virsh, then everyone's alone.
fn rows(case: &str, all: Moves) -> Vec<Figure> {
    let mut figures = Vec::new();
    let (basin, peers): (Moves, Moves) = all.into_iter().partition(|(name, _)| *name == "Basin");
    let (virsh, hand): (Moves, Moves) = peers.into_iter().partition(|(name, _)| *name == VIRSH);
    let best = hand.iter().min_by(|a, b| gap(&a.1).total_cmp(&gap(&b.1)));
    for (name, moves) in &basin {
        for (peer, limit) in [(best, 1.05), (virsh.first(), 1.0)] {
            let Some((peer, theirs)) = peer else { continue };
            figures.extend(pair_of(case, name, moves).map(|(figure, value)| {
                let theirs: Vec<f64> = theirs.iter().map(value).collect();
                figure.beside(peer, &theirs).target(Target::Ratio(limit))
            }));
        }
    }
    for (name, moves) in basin.iter().chain(&hand).chain(&virsh) {
        figures.extend(pair_of(case, name, moves).map(|(figure, _)| {
            println!("{}: {:.0} ms", figure.case, figure.basin);
            figure
        }));
    }
    figures
}

/// A figure of each kind, and how a move has it.
fn pair_of(case: &str, name: &str, moves: &[Move]) -> [(Figure, Value); 2] {
    let of = |what: &str, value: Value| {
        let values: Vec<f64> = moves.iter().map(value).collect();
        let case = format!("{case}, {name}: {what}");
        (Figure::alone(case, "ms", &values, Better::Lower), value)
    };
    [of("gap", |m| m.gap), of("total", |m| m.total)]
}

fn gap(moves: &[Move]) -> f64 {
    median(&moves.iter().map(|m| m.gap).collect::<Vec<_>>())
}
