//! One server: its daemon, and what users do with it. What may befall it is in `faults`.

use std::fs;
use std::future::Future;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use basin_api::Problem;
use basin_api::client::{Client, ClientError};
use basin_api::task::{Task, TaskState};
use basin_api::vm::VmCreate;
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use crate::cluster::Cable;
use crate::guest::Guest;
use crate::outside::Outside;
use crate::place::{Place, inside};
use crate::process;
use crate::start::{Setup, wait_ready};
use crate::wait::{BOOT, SOON, eventually};

/// A server, with everything that belongs to it.
pub struct Server {
    pub place: Place,
    pub(crate) setup: Mutex<Setup>,
    pub(crate) daemon: Mutex<Option<Child>>,
    client: Mutex<Option<Client>>,
    pub(crate) outside: Option<Outside>,
    pub(crate) cable: Option<Cable>,
    pub(crate) runtime: Runtime,
    pub(crate) imported: OnceLock<()>,
}

/// How a run of the `basin` command ended.
#[derive(Debug)]
pub struct Cli {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Server {
    /// A server with nothing special about it.
    #[track_caller]
    pub fn start() -> Server {
        Setup::new().start()
    }

    pub(crate) fn new(
        place: Place,
        outside: Option<Outside>,
        cable: Option<Cable>,
        setup: Setup,
    ) -> Server {
        let runtime = runtime();
        let (daemon, client) = (Mutex::new(None), Mutex::new(None));
        let setup = Mutex::new(setup);
        Server { place, setup, daemon, client, outside, cable, runtime, imported: OnceLock::new() }
    }

    // The daemon.

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn boot(&self) {
        self.try_boot().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Starts the daemon; says how it ended when it does not come up. What it said
    /// is in [`Server::log`].
    pub fn try_boot(&self) -> Result<(), String> {
        let mut daemon = lock(&self.daemon);
        assert!(daemon.is_none(), "the daemon runs already");
        let mut child = lock(&self.setup).command(&self.place).spawn().expect("start the daemon");
        let ready = wait_ready(&mut child, &self.place, &self.runtime);
        if ready.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        } else {
            *daemon = Some(child);
        }
        *lock(&self.client) = Some(ready?);
        Ok(())
    }

    /// Changes what the daemon is started with the next time.
    pub fn set_up(&self, change: impl FnOnce(Setup) -> Setup) {
        let mut setup = lock(&self.setup);
        *setup = change(setup.clone());
    }

    /// `basin serve` as this server would run it, for a second daemon beside it.
    pub fn serve_command(&self) -> std::process::Command {
        lock(&self.setup).command(&self.place)
    }

    #[track_caller]
    pub fn pid(&self) -> u32 {
        lock(&self.daemon).as_ref().expect("the daemon runs").id()
    }

    /// Whether its daemon was started and has not been stopped, killed or seen to end.
    pub fn is_up(&self) -> bool {
        lock(&self.daemon).is_some()
    }

    /// kill -9 of the daemon alone.
    #[track_caller]
    pub fn kill(&self) {
        let mut child = lock(&self.daemon).take().expect("the daemon runs");
        child.kill().expect("kill the daemon");
        child.wait().expect("wait for the daemon");
    }

    /// Stops the daemon as an operator does, and waits for its end.
    #[track_caller]
    pub fn stop(&self) {
        let mut child = lock(&self.daemon).take().expect("the daemon runs");
        process::signal(child.id(), Signal::SIGTERM);
        let ended = || child.try_wait().expect("look at the daemon");
        let status = eventually("the daemon stops", SOON, ended);
        assert!(status.success(), "the daemon ended with {status}");
    }

    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.boot();
    }

    /// Waits for a daemon that ends by itself, as one does that a test told to fail.
    #[track_caller]
    pub fn wait_dead(&self) {
        let mut child = lock(&self.daemon).take().expect("the daemon runs");
        eventually("the daemon ends", BOOT, || child.try_wait().expect("look at the daemon"));
    }

    /// What the daemon and its helpers logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.place.log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    // What users do.

    #[track_caller]
    pub fn client(&self) -> Client {
        lock(&self.client).clone().expect("the daemon was started")
    }

    /// The outcome of a call, whatever it is.
    pub fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// What runs the harness's own calls.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The answer to a call.
    #[track_caller]
    pub fn ok<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> T {
        self.call(call).unwrap_or_else(|e| panic!("{e}\n{}", e.advice()))
    }

    /// The refusal of a call.
    #[track_caller]
    pub fn refused<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Problem {
        match self.call(call) {
            Ok(_) => panic!("this should have been refused"),
            Err(ClientError::Problem(problem)) => *problem,
            Err(e) => panic!("not refused but: {e}"),
        }
    }

    /// The task that a call began, when it is over, however it ended.
    #[track_caller]
    pub fn over(&self, call: impl Future<Output = Result<Task, ClientError>>) -> Task {
        let task = self.ok(call);
        let client = self.client();
        let waited = self
            .call(async { tokio::time::timeout(BOOT, client.wait_task(&task.id, |_| {})).await });
        let task = waited.unwrap_or_else(|_| panic!("task {} takes too long: {task:?}", task.kind));
        task.unwrap_or_else(|e| panic!("{e}"))
    }

    /// The task that a call began, which has to succeed.
    #[track_caller]
    pub fn done(&self, call: impl Future<Output = Result<Task, ClientError>>) -> Task {
        let task = self.over(call);
        assert_eq!(task.state, TaskState::Done, "task {}: {:?}", task.kind, task.problem);
        task
    }

    /// `basin ARGS` in the server's network, against its socket.
    pub fn basin(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.place.command(&lock(&self.setup).binary);
        command.args(args).env("BASIN_SOCKET", self.place.socket());
        command
    }

    /// Runs `basin ARGS` in the server's network, against its socket.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Cli {
        let out = self.basin(args).output().expect("run basin");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = out.status.code().unwrap_or(-1);
        Cli { code, stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }

    /// Runs a command in the server's network; its output, for it has to succeed.
    #[track_caller]
    pub fn sh(&self, command: &str) -> String {
        let out = self.place.command("sh").args(["-c", command]).output().expect("run sh");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{command}: {}{}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    /// Runs something whose sockets are in the server's network, with a runtime whose
    /// threads are there too.
    pub fn in_network<T: Send>(&self, work: impl FnOnce(&Runtime) -> T + Send) -> T {
        inside(&self.place.name, || {
            let runtime = runtime();
            let done = work(&runtime);
            // A console that is open is no reason to wait.
            runtime.shutdown_background();
            done
        })
    }

    #[track_caller]
    pub fn outside(&self) -> &Outside {
        self.outside.as_ref().expect("a server set up with an outside")
    }

    /// A VM that exists.
    pub fn guest(&self, name: &str) -> Guest<'_> {
        Guest::new(self, name)
    }

    /// Makes a VM.
    #[track_caller]
    pub fn create(&self, vm: &VmCreate) -> Guest<'_> {
        self.done(self.client().create::<basin_api::vm::Vm>(vm));
        self.guest(&vm.name)
    }
}

impl Cli {
    /// What it printed, for it has to succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}---", self.place.name, self.log());
            self.print_guests();
        }
        let child = lock(&self.daemon).take();
        self.place.kill_all();
        if let Some(mut child) = child {
            let _ = child.wait();
        }
        self.place.remove();
    }
}

impl Server {
    /// The end of what QEMU and the guests said.
    fn print_guests(&self) {
        let vms = fs::read_dir(self.place.state_dir().join("vms")).into_iter().flatten().flatten();
        for vm in vms {
            for file in ["qemu.log", "console.log"] {
                let bytes = fs::read(vm.path().join(file)).unwrap_or_default();
                let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..])
                    .into_owned();
                eprintln!("--- {} of {}\n{end}\n---", file, vm.file_name().display());
            }
        }
    }
}

fn runtime() -> Runtime {
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
