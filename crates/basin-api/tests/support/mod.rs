//! Servers for tests: any axum router, on a unix socket or behind TLS, that can be stopped.

// Each test file uses a part of this.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::path::{Path, PathBuf};

use axum::Router;
use basin_api::client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

pub struct Server {
    pub dir: TempDir,
    running: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(router: Router) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let running = Some(serve(&dir.path().join("api.sock"), router));
        Server { dir, running }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn client(&self) -> Client {
        Client::local(&self.socket()).expect("a client")
    }

    /// As a kill does: the socket's file stays, the connections break.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
    }

    pub async fn restart(&mut self, router: Router) {
        self.stop().await;
        std::fs::remove_file(self.socket()).expect("the old socket");
        self.running = Some(serve(&self.socket(), router));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

fn serve(socket: &Path, router: Router) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        axum::serve(listener, router).await.expect("the server runs");
    })
}

pub fn task(state: &str, percent: u8) -> Value {
    json!({
        "id": "t1", "kind": "vm-create", "subject": "vm/1", "state": state,
        "message": "copying", "percent": percent, "cancel_requested": false,
        "created_at": "2026-01-01T00:00:00Z", "revision": u64::from(percent) + 1,
    })
}

pub fn network(name: &str) -> Value {
    json!({
        "id": "n1", "name": name, "description": "", "labels": {},
        "created_at": "2026-01-01T00:00:00Z", "revision": 7, "kind": "nat",
        "subnet": "10.80.0.0/24", "gateway": "10.80.0.1", "domain": "x.internal",
        "interfaces": 0,
    })
}
