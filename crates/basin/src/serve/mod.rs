//! `basin serve`: puts the parts of a server's daemon together, in order, and
//! takes them apart again. Everything that can be refused is refused before the
//! first VM is touched.
//!
//! - `args`: what it is told. `state`: where the store is, and what was left half done.
//! - `engine`: what runs machines, networks and disks. `cluster`: what only a server
//!   of a cluster has and does, `expiry` among it. `seat`: how it becomes one. `leave`: how it
//!   stops being one. `children`: those of before.

mod args;
mod children;
mod cluster;
mod engine;
mod expiry;
mod identity;
mod leave;
mod seat;
mod state;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use basin_controller::app::auth::Administrators;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services, bootstrap};
use basin_controller::http::listen::{self, Tls, TlsFiles};
use basin_controller::http::{self, Context};
use basin_controller::workflow::{Workflows, faults};
use basin_controller::workflows;
use basin_model::Name;
use basin_node::{LocalNode, NodeApi, remote};
use basin_store::{Store, records};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use args::ServeArgs;
use cluster::Member;
use seat::DaemonSeat;
use state::Opened;

/// How a daemon's run ends.
enum End {
    Stop,
    /// It becomes, or no longer is, one of a cluster: everything is put together anew.
    Again,
}

/// Runs until SIGTERM or SIGINT. VMs, their disks and networks go on after that.
pub fn main(args: &ServeArgs) -> anyhow::Result<()> {
    init_tracing(args.log_format);
    // Both HTTPS ends take their cryptography from here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if !nix::unistd::geteuid().is_root() {
        bail!("basin serve makes cgroups, networks and users' processes: run it as root");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    match runtime.block_on(run(args))? {
        End::Stop => Ok(()),
        End::Again => {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
            Err(replace_self())
        }
    }
}

/// The same program in the same process, from its beginning: nothing of before can be
/// left over but what outlives a daemon anyway. Returns only if that fails.
fn replace_self() -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let error = std::process::Command::new("/proc/self/exe").arg0(name).args(words).exec();
    anyhow::Error::new(error).context("cannot start anew; start the daemon again")
}

async fn run(args: &ServeArgs) -> anyhow::Result<End> {
    // From the first moment: whoever stops a daemon that is still starting has it
    // stopped in order, too.
    let mut signals = Signals::new()?;
    children::reap_inherited();
    prepare(&args.state_dir, 0o711)?;
    prepare(&args.run_dir, 0o711)?;
    let host = identity::host_id(&args.state_dir)?;
    let name = args.host_name()?;

    let stop = CancellationToken::new();
    // Two daemons would finish what was begun twice. The node claims it again, for good.
    let lock = basin_node::claim(&args.state_dir);
    let lock = lock.map_err(|e| anyhow::anyhow!("{}\n{}", e.detail, e.advice))?;
    let opened = tokio::select! {
        opened = state::open(args, host, &name, &stop) => opened?,
        () = signals.wait() => return Ok(End::Stop),
    };
    let (store, member) = match opened {
        Opened::Ready(store, member) => (store, member),
        Opened::Removed => {
            stop.cancel();
            return leave::begin_anew(args, host).await.map(|()| End::Again);
        }
        Opened::Again => return Ok(End::Again),
    };
    let https = args.listen.address().map(listen::bind_https).transpose()?;
    let port = https.as_ref().and_then(|l| l.local_addr().ok()).map(|a| a.port());
    records::check_schema(&*store).await?;
    if leave::was_removed(&*store, host).await? {
        stop.cancel();
        return leave::begin_anew(args, host).await.map(|()| End::Again);
    }
    bootstrap::ensure_host(&*store, host, &name).await?;
    let inventory = Inventory::open(store.clone()).await?;
    let member = member.map(|parts| Member::new(*parts, host, &inventory)).transpose()?;

    let peers = member.as_ref().map(|m| m.peers.clone());
    drop(lock);
    let parts = engine::open(args, host, cluster::node_peers(peers.clone(), &inventory)).await?;
    let node = LocalNode::start(parts.node, store.clone(), parts.engine, parts.fabric)
        .await
        .map_err(|e| anyhow::anyhow!("{}\n{}", e.0.detail, e.0.advice))?;
    let defaults = bootstrap::ensure_defaults(&*store, host, &args.state_dir, &*node);
    defaults.await?;

    let nodes = match peers {
        None => Nodes::single(host, node.clone()),
        Some(peers) => Nodes::cluster(host, node.clone(), peers, inventory.clone()),
    };
    if let Some(member) = &member {
        member.announce(&inventory, &stop).await;
    }
    let again = Arc::new(Notify::new());
    let seat = DaemonSeat::new(&args.state_dir, port, again.clone(), member.as_ref());
    let app = open_app(store, inventory, nodes, member.as_ref(), seat, &stop).await?;
    let context = Context::new(app.clone(), Arc::new(Administrators));
    let router = http::router(context.clone());
    let socket = listen::bind_socket(&args.socket())?;
    let local = tokio::spawn(listen::serve_socket(socket, router.clone(), stop.clone()));
    let tls = match &member {
        Some(member) => Tls::Cluster(member.credentials.clone()),
        None => TlsFiles::ensure(&args.state_dir.join("tls"), certificate_names(&name))
            .and_then(|files| files.load())?,
    };
    let remote = https.map(|listener| {
        let mut router = router;
        if member.is_some() {
            let node: Arc<dyn NodeApi> = node.clone();
            router = router.merge(remote::router(node)).merge(http::cluster::joining(context));
        }
        let (address, stop) = (listener.local_addr(), stop.clone());
        info!(?address, "HTTPS is served");
        tokio::spawn(async move {
            if let Err(e) = listen::serve_https(listener, tls, router, stop).await {
                error!("{e:#}");
            }
        })
    });
    let duties = member.map(|member| member.serve(&app, &node, again.clone(), &stop));
    info!(socket = %args.socket().display(), %host, %name, "basin is ready");

    let end = tokio::select! {
        () = signals.wait() => End::Stop,
        () = again.notified() => End::Again,
    };
    info!("stopping; virtual machines go on");
    stop.cancel();
    app.workflows.stop().await;
    if let Some(duties) = duties {
        duties.wait().await;
    }
    local.await?;
    if let Some(remote) = remote {
        remote.await?;
    }
    node.shutdown().await;
    Ok(end)
}

async fn open_app(
    store: Arc<dyn Store>,
    inventory: Inventory,
    nodes: Nodes,
    member: Option<&Member>,
    seat: DaemonSeat,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<App>> {
    let services = Arc::new(Services { store: store.clone(), inventory, nodes });
    let faults = faults::from_env().map_err(anyhow::Error::msg)?;
    let options = basin_controller::workflow::Options { faults, ..Default::default() };
    let registry = workflows::registry();
    let workflows = Workflows::with_options(store.clone(), services.clone(), registry, options);
    let app = App::new(services, workflows).seated(Arc::new(seat));
    Ok(Arc::new(match member {
        Some(member) => app.led(member.campaign(store, stop)),
        None => {
            let resumed = app.workflows.resume_all().await?;
            if resumed > 0 {
                info!(resumed, "tasks of an earlier daemon go on");
            }
            app
        }
    }))
}

fn prepare(directory: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot use the directory {}", directory.display()))
}

/// What a client may call this server by.
fn certificate_names(name: &Name) -> Vec<String> {
    vec![name.to_string(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]
}

/// What asks a daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn init_tracing(format: args::LogFormat) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("BASIN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        args::LogFormat::Text => subscriber.with_ansi(false).init(),
        args::LogFormat::Json => subscriber.json().init(),
    }
}
