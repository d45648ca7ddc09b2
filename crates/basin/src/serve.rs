//! `basin serve`: puts the parts of a server's daemon together, in order, and
//! takes them apart again. Everything that can be refused is refused before the
//! first VM is touched.

mod args;
mod engine;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use basin_controller::app::auth::Administrators;
use basin_controller::app::inventory::Inventory;
use basin_controller::app::nodes::Nodes;
use basin_controller::app::{App, Services, bootstrap};
use basin_controller::http::listen::{self, TlsFiles};
use basin_controller::http::{self, Context};
use basin_controller::workflow::{Workflows, faults};
use basin_controller::workflows;
use basin_model::{HostId, Name};
use basin_node::LocalNode;
use basin_store::{SqliteStore, Store, records};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use args::ServeArgs;

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
    runtime.block_on(run(args))
}

async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    // From the first moment: whoever stops a daemon that is still starting has it
    // stopped in order, too.
    let mut signals = Signals::new()?;
    prepare(&args.state_dir, 0o711)?;
    prepare(&args.run_dir, 0o711)?;
    let store = open_store(&args.state_dir)?;
    records::check_schema(&*store).await?;
    let host = host_id(&args.state_dir)?;
    let https = args.listen.address().map(listen::bind_https).transpose()?;

    let name = args.host_name()?;
    bootstrap::ensure_host(&*store, host, &name).await?;
    let parts = engine::open(args, host).await?;
    let node = LocalNode::start(parts.node, store.clone(), parts.engine, parts.fabric)
        .await
        .map_err(|e| anyhow::anyhow!("{}\n{}", e.0.detail, e.0.advice))?;
    bootstrap::ensure_defaults(&*store, host, &args.state_dir, &*node).await?;

    let app = open_app(store, host, node.clone()).await?;
    let stop = CancellationToken::new();
    let router = http::router(Context::new(app.clone(), Arc::new(Administrators)));
    let socket = listen::bind_socket(&args.socket())?;
    let local = tokio::spawn(listen::serve_socket(socket, router.clone(), stop.clone()));
    let remote = https.map(|listener| {
        let (address, stop) = (listener.local_addr(), stop.clone());
        let tls = TlsFiles::ensure(&args.state_dir.join("tls"), certificate_names(&name))
            .and_then(|files| files.load());
        info!(?address, "HTTPS is served");
        tokio::spawn(async move {
            if let Err(e) = listen::serve_https(listener, tls?, router, stop).await {
                error!("{e:#}");
            }
            anyhow::Ok(())
        })
    });
    info!(socket = %args.socket().display(), %host, %name, "basin is ready");

    signals.wait().await;
    info!("stopping; virtual machines go on");
    stop.cancel();
    app.workflows.stop().await;
    local.await?;
    if let Some(remote) = remote {
        remote.await??;
    }
    node.shutdown().await;
    Ok(())
}

async fn open_app(
    store: Arc<dyn Store>,
    host: HostId,
    node: Arc<LocalNode>,
) -> anyhow::Result<Arc<App>> {
    let inventory = Inventory::open(store.clone()).await?;
    let nodes = Nodes::single(host, node);
    let services = Arc::new(Services { store: store.clone(), inventory, nodes });
    let faults = faults::from_env().map_err(anyhow::Error::msg)?;
    let options = basin_controller::workflow::Options { faults, ..Default::default() };
    let registry = workflows::registry();
    let workflows = Workflows::with_options(store, services.clone(), registry, options);
    let resumed = workflows.resume_all().await?;
    if resumed > 0 {
        info!(resumed, "tasks of an earlier daemon go on");
    }
    Ok(Arc::new(App::new(services, workflows)))
}

fn prepare(directory: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot use the directory {}", directory.display()))
}

fn open_store(state_dir: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let path = state_dir.join("store.sqlite");
    let store = SqliteStore::open(&path)
        .with_context(|| format!("cannot open the state store {}", path.display()))?;
    Ok(Arc::new(store))
}

/// The server's id: made at the first start, and kept.
fn host_id(state_dir: &Path) -> anyhow::Result<HostId> {
    let path = state_dir.join("host-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .with_context(|| format!("{} does not hold a server's id", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let id = HostId::from_uuid(uuid::Uuid::now_v7());
            let temporary = state_dir.join("host-id.new");
            let write = || {
                std::fs::write(&temporary, format!("{id}\n"))?;
                std::fs::File::open(&temporary)?.sync_all()?;
                std::fs::rename(&temporary, &path)?;
                std::fs::File::open(state_dir)?.sync_all()
            };
            write().with_context(|| format!("cannot write {}", path.display()))?;
            Ok(id)
        }
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
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
