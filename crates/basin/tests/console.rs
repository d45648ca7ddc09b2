//! The serial console: piped, and at a terminal that must be left as it was.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use axum::Router;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::{any, get};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use support::{Ran, Server};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

/// Sends history, then every line back in capitals; a line `bye` ends it.
async fn guest(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        let _ = socket.send(Message::Binary("login: ".into())).await;
        while let Some(Ok(message)) = socket.recv().await {
            let Message::Binary(bytes) = message else { continue };
            if bytes.ends_with(b"bye\n") {
                let _ = socket.send(Message::Close(None)).await;
                return;
            }
            let answer = bytes.to_ascii_uppercase();
            let _ = socket.send(Message::Binary(answer.into())).await;
        }
    })
}

fn server() -> Server {
    let router = Router::new()
        .route("/v1/vms/web/console", any(guest))
        .route("/v1/vms/web/console/log", get(async || "booted\n"));
    Server::start(router)
}

#[tokio::test]
async fn piped_input_is_sent_and_answered() {
    let server = server();
    let mut child = server
        .basin(&["vm", "console", "web", "--linger", "1s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    // What leaves at a terminal is data here.
    let mut input = child.stdin.take().expect("its input");
    input.write_all(b"ls\x1d\n").await.expect("written");
    drop(input);
    let ran = Ran::from(child.wait_with_output().await.expect("it ends"));
    ran.check(0, "login: LS\x1d\n", "");
}

#[tokio::test]
async fn the_log_of_a_console() {
    let server = server();
    server.run(&["vm", "log", "web"]).await.check(0, "booted\n", "");
}

struct Terminal {
    child: Child,
    keyboard: File,
    slave: OwnedFd,
    before: Termios,
}

impl Terminal {
    /// Runs the console at a new terminal, until the guest's history shows.
    async fn open(server: &Server) -> Terminal {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
        let before = tcgetattr(&slave).expect("its settings");
        let copy = || slave.try_clone().expect("a copy");
        let child = server
            .basin(&["vm", "console", "web"])
            .stdin(copy())
            .stdout(copy())
            .stderr(copy())
            .spawn()
            .expect("it runs");
        let mut terminal = Terminal { child, keyboard: File::from(master), slave, before };
        terminal.until("login: ").await;
        assert!(!terminal.settings().local_flags.contains(LocalFlags::ECHO), "it is raw");
        terminal
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.slave).expect("its settings")
    }

    /// Reads the screen until it shows a text.
    async fn until(&mut self, text: &str) {
        let mut screen = self.keyboard.try_clone().expect("a copy");
        let text = text.to_owned();
        let read = move || {
            let mut shown = Vec::new();
            while !String::from_utf8_lossy(&shown).contains(&text) {
                let mut byte = [0];
                screen.read_exact(&mut byte).expect("the terminal is open");
                shown.push(byte[0]);
            }
        };
        tokio::task::spawn_blocking(read).await.expect("shown");
    }

    async fn ends(&mut self, status: i32) {
        let ended = self.child.wait().await.expect("it ends");
        assert_eq!(ended.code(), Some(status));
        assert_eq!(self.settings(), self.before, "the terminal is as it was");
    }
}

#[tokio::test]
async fn the_escape_key_leaves() {
    let server = server();
    let mut terminal = Terminal::open(&server).await;
    // Ctrl-C is the guest's.
    terminal.keyboard.write_all(b"who\x03").expect("typed");
    terminal.until("WHO\x03").await;
    terminal.keyboard.write_all(b"\x1d").expect("typed");
    terminal.ends(0).await;
}

#[tokio::test]
async fn the_terminal_is_restored_when_the_guest_or_a_signal_ends_it() {
    let server = server();
    let mut terminal = Terminal::open(&server).await;
    terminal.keyboard.write_all(b"bye\n").expect("typed");
    terminal.ends(0).await;

    let mut terminal = Terminal::open(&server).await;
    let pid = i32::try_from(terminal.child.id().expect("it runs")).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signalled");
    terminal.ends(130).await;
}
