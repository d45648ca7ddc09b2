//! One VM of a server, as its users see it; and its process, as a fault sees it.

use basin_api::client::{DeleteVm, VmAction};
use basin_api::vm::{Shutdown, State, Vm};

use crate::console::Console;
use crate::process;
use crate::server::Server;
use crate::wait::{BOOT, SOON, eventually, until};

/// A VM.
pub struct Guest<'s> {
    pub server: &'s Server,
    pub name: String,
}

impl<'s> Guest<'s> {
    pub(crate) fn new(server: &'s Server, name: &str) -> Guest<'s> {
        Guest { server, name: name.to_owned() }
    }

    #[track_caller]
    pub fn vm(&self) -> Vm {
        self.server.ok(self.server.client().get::<Vm>(&self.name))
    }

    #[track_caller]
    pub fn state(&self) -> State {
        self.vm().status.state
    }

    #[track_caller]
    pub fn wait_state(&self, wanted: State) {
        eventually(&format!("{} is {wanted:?}", self.name), BOOT, || {
            (self.state() == wanted).then_some(())
        });
    }

    /// The address of its first interface.
    #[track_caller]
    pub fn address(&self) -> String {
        self.vm().nics.first().expect("a network interface").address.clone()
    }

    #[track_caller]
    pub fn act(&self, action: VmAction) {
        self.server.done(self.server.client().vm_action(&self.name, action));
    }

    #[track_caller]
    pub fn start(&self) {
        self.act(VmAction::Start);
    }

    /// Presses the power button; returns when the VM is off, if need be by force after
    /// so many seconds.
    #[track_caller]
    pub fn shut_down(&self, timeout_seconds: u32) {
        let how = Shutdown { timeout_seconds: Some(timeout_seconds) };
        self.server.done(self.server.client().shutdown_vm(&self.name, &how));
    }

    #[track_caller]
    pub fn power_off(&self) {
        self.act(VmAction::PowerOff);
    }

    #[track_caller]
    pub fn delete(&self, force: bool) {
        let how = DeleteVm { force, keep_disks: false };
        self.server.done(self.server.client().delete_vm(&self.name, how));
    }

    /// Its serial console; first come the last 64 KiB of what it said before.
    #[track_caller]
    pub fn console(&self) -> Console {
        Console::open(self.server, &self.name)
    }

    /// The console of a micro guest that has come up, at its shell.
    #[track_caller]
    pub fn shell(&self) -> Console {
        let mut console = self.console();
        console.expect("micro# ");
        console
    }

    /// The console of a micro guest that has come up and got its address.
    #[track_caller]
    pub fn online(&self) -> Console {
        let mut console = self.shell();
        self.wait_log("micro: address", 1);
        console.run(":");
        console
    }

    /// The end of what its console said, over all its runs.
    #[track_caller]
    pub fn log(&self) -> String {
        let log = self.server.ok(self.server.client().console_log(&self.name, Some(1 << 20)));
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until the `tcp-count` that it runs has been answered some times more, in order.
    #[track_caller]
    pub fn wait_answers(&self) {
        let answers = |log: &str| log.matches("tcp-count: ").count();
        let before = answers(&self.log());
        eventually("answers go on coming, in order", BOOT, || {
            let log = self.log();
            assert!(!log.contains("FAILED"), "{log}");
            (answers(&log) >= before + 3).then_some(())
        });
    }

    /// Waits until its console has said something so many times, over all its runs.
    #[track_caller]
    pub fn wait_log(&self, text: &str, times: usize) {
        eventually(&format!("{} says '{text}' {times} times", self.name), BOOT, || {
            (self.log().matches(text).count() >= times).then_some(())
        });
    }

    /// Waits until a micro guest has come up for the nth time, to its shell.
    #[track_caller]
    pub fn wait_boot(&self, nth: usize) {
        eventually(&format!("{} comes up the {nth}. time", self.name), BOOT, || {
            let log = self.log();
            let since = log.match_indices("micro: up").nth(nth - 1)?.0;
            log[since..].contains("micro# ").then_some(())
        });
    }

    /// The processes in its cgroup: its QEMU, when it runs.
    #[track_caller]
    pub fn processes(&self) -> Vec<u32> {
        let id = self.vm().meta.id;
        let cgroups = self.server.place.cgroups();
        let mut pids: Vec<u32> = cgroups
            .iter()
            .flat_map(|c| process::in_cgroup(&c.join(format!("vm-{id}"))))
            .filter(|&pid| process::alive(pid))
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Its QEMU, of which there has to be exactly one soon.
    #[track_caller]
    pub fn qemu_pid(&self) -> u32 {
        eventually(&format!("{} has one QEMU", self.name), SOON, || match self.processes()[..] {
            [pid] => Some(pid),
            _ => None,
        })
    }

    /// kill -9 of its QEMU; returns its process id once that is dead.
    #[track_caller]
    pub fn kill_qemu(&self) -> u32 {
        let pid = self.qemu_pid();
        process::kill_hard(pid);
        pid
    }

    /// Waits until it has another QEMU than this.
    #[track_caller]
    pub fn wait_new_qemu(&self, old: u32) -> u32 {
        until(
            &format!("{} has another QEMU", self.name),
            || matches!(self.processes()[..], [pid] if pid != old),
        );
        self.qemu_pid()
    }
}
