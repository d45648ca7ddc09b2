//! How a server is started, and whether it came up.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use basin_api::client::Client;
use tokio::runtime::Runtime;

use crate::outside::Outside;
use crate::place::Place;
use crate::server::Server;
use crate::wait::SOON;
use crate::{clock, mounts};

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub binary: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    outside: bool,
    clock: bool,
    pub(crate) state_bytes: Option<u64>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            binary: binary(),
            args: Vec::new(),
            env: Vec::new(),
            outside: false,
            clock: false,
            state_bytes: None,
        }
    }
}

impl Setup {
    pub fn new() -> Setup {
        Setup::default()
    }

    /// An argument of `basin serve`, such as `--memory=1GiB`; goes before the harness's own.
    pub fn arg(mut self, arg: impl Into<String>) -> Setup {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, key: &str, value: impl Into<String>) -> Setup {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    pub fn without_env(mut self, key: &str) -> Setup {
        self.env.retain(|(k, _)| k != key);
        self
    }

    pub fn binary(mut self, binary: PathBuf) -> Setup {
        self.binary = binary;
        self
    }

    /// Connected to a world outside, which is the server's default route.
    pub fn outside(mut self) -> Setup {
        self.outside = true;
        self
    }

    /// Its wall clock can be set: see [`Server::set_clock`].
    pub fn clock(mut self) -> Setup {
        self.clock = true;
        self
    }

    /// Its state directory is a file system of its own of this size, which can be
    /// filled: see [`Server::fill_disk`].
    pub fn state_disk(mut self, bytes: u64) -> Setup {
        self.state_bytes = Some(bytes);
        self
    }

    /// A server in a new place.
    #[track_caller]
    pub fn start(self) -> Server {
        let server = self.prepare();
        server.boot();
        server
    }

    /// A server in a new place whose daemon has not been started yet: for tests that
    /// put something into its directories first. See [`Server::boot`].
    #[track_caller]
    pub fn prepare(self) -> Server {
        let place = Place::new();
        let outside = self.outside.then(|| Outside::new(&place));
        if let Some(bytes) = self.state_bytes {
            mounts::limited(&place, &place.state_dir(), bytes);
        }
        Server::new(place, outside, None, self)
    }

    /// `basin serve` in the server's place and network; logs to `place.log()`.
    pub(crate) fn command(&self, place: &Place) -> Command {
        let log = OpenOptions::new().create(true).append(true).open(place.log());
        let log = log.expect("open the server's log");
        let mut command = place.command(&self.binary);
        command.arg("serve").args(&self.args);
        command.arg("--state-dir").arg(place.state_dir()).arg("--run-dir").arg(place.run_dir());
        command.args(["--cgroup", &place.name]);
        if !self.args.iter().any(|arg| arg.starts_with("--listen")) {
            command.args(["--listen", "127.0.0.1:7443"]);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if self.clock {
            command.envs(clock::environment(place));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        command
    }
}

/// The binary that tests drive.
fn binary() -> PathBuf {
    let path = std::env::var_os("BASIN_BIN").expect("set BASIN_BIN to the basin binary");
    std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("BASIN_BIN {}: {e}", path.display()))
}

/// Waits until the daemon answers on its socket; says how it ended when it ends first.
pub(crate) fn wait_ready(
    child: &mut Child,
    place: &Place,
    runtime: &Runtime,
) -> Result<Client, String> {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("look at the daemon") {
            return Err(format!("the daemon ended with {status}"));
        }
        let client = Client::local(&place.socket()).expect("a client");
        match runtime.block_on(client.version()) {
            Ok(_) => return Ok(client),
            Err(e) if since.elapsed() > SOON => return Err(format!("it never answered: {e}")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
