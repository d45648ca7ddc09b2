//! Running guests move between two servers: plain QEMU driven by hand with the settings
//! an operator would try, and `virsh migrate --live` between two libvirtd.
//!
//! What counts is the longest silence of the heartbeat that the guest sends every 5 ms,
//! as the network's middle hears it, and the time that all of it takes.

mod support;

use std::time::Duration;

use anyhow::Context;
use basin_e2e::bench::report::{Better, Figure};
use basin_e2e::bench::results;
use support::by_hand::{ByHand, Tuning};
use support::by_virsh::ByVirsh;
use support::mover::{Guest, Load, Move, Mover};
use support::pair::Pair;

/// What has not come to its end by then never will.
const LIMIT: Duration = Duration::from_secs(20);

const SIZES: [u64; 2] = [256, 1024];
const LOADS: [Load; 4] =
    [Load::Idle, Load::MibPerSecond(60), Load::MibPerSecond(200), Load::Unthrottled];

fn main() -> anyhow::Result<()> {
    let runs = std::env::var("BENCH_RUNS").ok().map_or(Ok(5), |n| n.parse())?;
    let pair = Pair::new();
    let mut figures = Vec::new();
    let by_hand = |tuning| Box::new(ByHand::new(&pair.cluster, tuning)) as Box<dyn Mover + '_>;
    let mut movers: Vec<(&str, Box<dyn Mover + '_>)> = vec![
        ("QEMU, defaults", by_hand(Tuning::Defaults)),
        ("QEMU, all of the link, 30 ms", by_hand(Tuning::Fast)),
        ("QEMU, post-copy", by_hand(Tuning::PostCopy)),
        ("virsh", Box::new(ByVirsh::new(&pair.cluster)?)),
    ];
    for mib in SIZES {
        for load in LOADS {
            let guest = Guest { mib, load, heartbeat: pair.collector.address };
            for (name, mover) in &mut movers {
                let case = format!("{mib} MiB, {}, {name}", load.words());
                let moves = guest.moves(mover.as_mut(), &pair.collector, runs, LIMIT);
                match moves.with_context(|| case.clone())? {
                    Some(moves) => figures.extend(rows(&case, &moves)),
                    None => println!("{case}: does not come to its end"),
                }
            }
        }
    }
    results::publish("migrate", &figures)
}

fn rows(case: &str, moves: &[Move]) -> [Figure; 2] {
    let row = |what: &str, value: fn(&Move) -> f64| {
        let values: Vec<f64> = moves.iter().map(value).collect();
        let figure = Figure::alone(format!("{case}: {what}"), "ms", &values, Better::Lower);
        println!("{}: {:.0} ms", figure.case, figure.basin);
        figure
    };
    [row("gap", |m| m.gap), row("total", |m| m.total)]
}
