//! A cluster of simulated servers around real controllers and a real etcd: how long a
//! change takes to its server and to whoever watches, what lists take, how long nobody
//! leads after the leader is killed, and what it all costs.

mod cluster;
mod measure;
mod program;

use std::time::Duration;

use anyhow::Context;
use basin_e2e::bench::report::{Better, Figure, percentile};

use cluster::Cluster;

/// How much there is. The environment may say less.
struct Size {
    servers: usize,
    vms: usize,
    /// Servers whose node is simulated whole: as many as this machine bears.
    whole: usize,
}

const REST: Duration = Duration::from_secs(15);
const LOAD: Duration = Duration::from_secs(15);

pub fn figures() -> anyhow::Result<Vec<Figure>> {
    let size = Size {
        servers: from_env("BENCH_SERVERS", 1000)?,
        vms: from_env("BENCH_VMS", 20_000)?,
        whole: from_env("BENCH_WHOLE", 100)?,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(all(&size))
}

fn from_env(name: &str, usual: usize) -> anyhow::Result<usize> {
    std::env::var(name).ok().map_or(Ok(usual), |n| n.parse().with_context(|| name.to_owned()))
}

async fn all(size: &Size) -> anyhow::Result<Vec<Figure>> {
    let mut rows = Rows(Vec::new());
    let mut cluster = Cluster::start(size).await?;
    let began = cluster.began;
    rows.one("controller: reads everything and serves", "s", began.controller.as_secs_f64());
    rows.one("simulated servers: all watch", "s", began.servers.as_secs_f64());

    let idle = measure::costs(&cluster.costing(), REST).await?;
    rows.costs("at rest", &idle);
    let lists = measure::lists(&cluster).await?;
    rows.spread("GET /v1/vms, bytes read", &lists.bytes);
    rows.spread("GET /v1/vms, read as VMs by the client", &lists.client);
    rows.spread("basin vm list from the shell", &lists.shell);
    rows.one("size of that list", "MiB", lists.mib);

    let changes = measure::changes(&cluster, size).await?;
    rows.spread("a change: accepted", &changes.accepted);
    rows.spread("a change: done by its server", &changes.done);
    rows.spread("a change: heard of at another controller", &changes.heard);
    rows.spread("a change: known at another controller as done", &changes.known);

    let (rate, busy) = measure::load(&cluster, size, LOAD).await?;
    rows.one("changes under load, 8 at once", "1/s", rate);
    rows.costs("under that load", &busy);

    let failovers = measure::failovers(&mut cluster, size).await?;
    let case = "leader killed: until another accepts a change";
    rows.0.push(Figure::alone(rows.case(case), "ms", &failovers, Better::Lower));
    Ok(rows.0)
}

struct Rows(Vec<Figure>);

impl Rows {
    fn case(&self, case: &str) -> String {
        format!("cluster, {case}")
    }

    fn one(&mut self, case: &str, unit: &'static str, value: f64) {
        let better = if unit == "1/s" { Better::Higher } else { Better::Lower };
        println!("{case}: {value:.1} {unit}");
        self.0.push(Figure::alone(self.case(case), unit, &[value], better));
    }

    fn spread(&mut self, case: &str, values: &[f64]) {
        for percent in [50, 99] {
            let case = self.case(&format!("{case}, p{percent}"));
            let mut figure = Figure::alone(case, "ms", values, Better::Lower);
            figure.basin = percentile(values, percent);
            println!("{}: {:.1} ms", figure.case, figure.basin);
            self.0.push(figure);
        }
    }

    fn costs(&mut self, when: &str, costs: &[measure::Cost]) {
        for cost in costs {
            self.one(&format!("{} {when}, of one CPU", cost.who), "%", cost.cpu);
            self.one(&format!("{}'s memory {when}", cost.who), "MiB", cost.mib);
        }
    }
}
