//! What may befall one server, apart from its network.

use std::fs;

use nix::sys::signal::Signal;

use crate::process;
use crate::server::{Server, lock};
use crate::wait::{SOON, eventually, until};
use crate::{clock, mounts};

impl Server {
    /// The daemon does nothing until [`Server::thaw`].
    #[track_caller]
    pub fn freeze(&self) {
        process::signal(self.pid(), Signal::SIGSTOP);
    }

    #[track_caller]
    pub fn thaw(&self) {
        process::signal(self.pid(), Signal::SIGCONT);
    }

    /// Nothing of the server runs until [`Server::thaw_all`]: daemon, guests, helpers.
    /// Its kernel still answers, as that of a machine that swaps itself to a halt.
    #[track_caller]
    pub fn freeze_all(&self) {
        // What starts others meanwhile is stopped in the next round.
        until("everything of the server is stopped", || {
            let running = self.place.everything().into_iter().filter(|&pid| !process::stopped(pid));
            let running: Vec<u32> = running.collect();
            running.iter().for_each(|&pid| process::signal(pid, Signal::SIGSTOP));
            running.is_empty()
        });
    }

    #[track_caller]
    pub fn thaw_all(&self) {
        for pid in self.place.everything() {
            process::signal(pid, Signal::SIGCONT);
        }
    }

    /// The machine dies: every process at once, and what the kernel held and the run
    /// directory are gone. Nothing answers. The disk stays as it is, with all that was
    /// written: the kernel's cache of it cannot be lost here.
    #[track_caller]
    pub fn die(&self) {
        let child = lock(&self.daemon).take();
        self.place.lose_power();
        if let Some(mut child) = child {
            // Whoever killed it may have taken it away, too.
            let _ = child.wait();
        }
        // The kernel's boot id cannot be changed, but what the daemon noted of it.
        let note = self.place.state_dir().join("boot-id");
        if note.exists() {
            fs::write(note, "another\n").expect("change the boot id");
        }
    }

    /// The machine loses its power, and has it again: the daemon can be booted.
    #[track_caller]
    pub fn lose_power(&self) {
        self.die();
        self.plug_in();
    }

    /// A server that died comes back, and its daemon is started.
    #[track_caller]
    pub fn revive(&self) {
        self.plug_in();
        self.boot();
    }

    fn plug_in(&self) {
        if let Some(outside) = &self.outside {
            outside.plug_in(&self.place);
        }
        if let Some(cable) = &self.cable {
            cable.plug_in(&self.place);
        }
    }

    /// Sets the daemon's wall clock ahead of the machine's, or behind it. Needs
    /// [`Setup::clock`](crate::Setup::clock).
    pub fn set_clock(&self, seconds: i64) {
        clock::set(&self.place, seconds);
    }

    /// No byte more fits into the state directory. Needs
    /// [`Setup::state_disk`](crate::Setup::state_disk).
    #[track_caller]
    pub fn fill_disk(&self) {
        let limited = lock(&self.setup).state_bytes.is_some();
        assert!(limited, "a server with a disk of its own: it would fill the machine's");
        mounts::fill(&self.place.state_dir());
    }

    #[track_caller]
    pub fn empty_disk(&self) {
        mounts::make_room(&self.place.state_dir());
    }

    /// The I/O daemon's process, once there is one.
    #[track_caller]
    pub fn blockd_pid(&self) -> u32 {
        let run_dir = self.place.run_dir().display().to_string();
        let is_it = |words: &[String]| {
            words.iter().any(|w| w == "blockd") && words.iter().any(|w| w.contains(&run_dir))
        };
        eventually("blockd runs", SOON, || process::find(is_it).first().copied())
    }

    /// kill -9 of blockd; returns when another one runs.
    #[track_caller]
    pub fn kill_blockd(&self) {
        let old = self.blockd_pid();
        process::kill_hard(old);
        until("another blockd runs", || self.blockd_pid() != old);
    }
}
