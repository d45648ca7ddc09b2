//! A small server for the command line to talk to, and a way to run it.

// Each test file uses a part of this.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::process::{Output, Stdio};

use axum::Router;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::task::JoinHandle;

pub struct Server {
    pub dir: TempDir,
    running: JoinHandle<()>,
}

impl Server {
    pub fn start(router: Router) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("api.sock")).expect("a socket");
        let running = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the server runs");
        });
        Server { dir, running }
    }

    /// `basin ARGS`, to this server.
    pub fn basin(&self, args: &[&str]) -> Command {
        let mut command = basin(args);
        command.env("BASIN_SOCKET", self.dir.path().join("api.sock"));
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.basin(args).output().await.expect("basin runs"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub fn basin(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_basin"));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["BASIN_SOCKET", "BASIN_URL", "BASIN_TOKEN", "BASIN_CA"] {
        command.env_remove(name);
    }
    command
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn check(&self, status: i32, out: &str, err: &str) {
        let got = (self.status, self.out.as_str(), self.err.as_str());
        assert_eq!(got, (Some(status), out, err));
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, Some(0), "{self:?}");
        serde_json::from_str(&self.out).expect("JSON")
    }
}

pub fn vm(name: &str) -> Value {
    json!({
        "id": "v1", "name": name, "description": "", "labels": {},
        "created_at": "2020-01-01T00:00:00Z", "revision": 7,
        "hardware": {"vcpus": 2, "memory_bytes": 1 << 30, "cpu_model": "auto",
                     "machine": "q35", "boot": {"firmware": "bios"}},
        "disks": [], "cdroms": [], "nics": [],
        "policy": {"guest_crash": "restart", "machine_death": "leave"},
        "cloud_init": false, "wanted": "running",
        "status": {"state": "running", "generation": 1, "failures": 0},
    })
}

pub fn task(state: &str) -> Value {
    json!({
        "id": "t1", "kind": "vm-create", "subject": "vm/v1", "state": state,
        "message": "copying", "percent": 40, "cancel_requested": false,
        "created_at": "2026-01-01T00:00:00Z", "revision": 1,
    })
}

pub fn problem() -> Value {
    json!({
        "type": "urn:basin:problem:name-taken", "title": "The name is taken", "status": 409,
        "code": "name-taken", "detail": "a vm is named 'web' already",
        "advice": "Choose another name.",
    })
}
