//! A serial console: what a guest says, and what is typed to it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use basin_api::client::{Client, ConsoleInput, ConsoleOutput};
use tokio::runtime::Handle;

use crate::server::Server;
use crate::wait::BOOT;

/// A console that is open. What it said is kept; [`Console::expect`] goes through it.
pub struct Console {
    vm: String,
    runtime: Handle,
    input: ConsoleInput,
    said: Arc<Said>,
    /// Up to where it has been read.
    read: usize,
}

#[derive(Default)]
struct Said {
    text: Mutex<Text>,
    more: Condvar,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Why no more will come.
    ended: Option<String>,
}

impl Console {
    #[track_caller]
    pub(crate) fn open(server: &Server, vm: &str) -> Console {
        Console::of(server.runtime.handle(), &server.client(), vm)
    }

    /// By any client, such as one of HTTPS.
    #[track_caller]
    pub fn of(runtime: &Handle, client: &Client, vm: &str) -> Console {
        let console = runtime.block_on(client.console(vm));
        let console = console.unwrap_or_else(|e| panic!("open the console of {vm}: {e}"));
        let said = Arc::new(Said::default());
        runtime.spawn(collect(console.output, said.clone()));
        let (vm, runtime) = (vm.to_owned(), runtime.clone());
        Console { vm, runtime, input: console.input, said, read: 0 }
    }

    /// Waits until the guest says `text`; returns what it said up to and with it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        self.expect_within(text, BOOT)
    }

    #[track_caller]
    pub fn expect_within(&mut self, text: &str, limit: Duration) -> String {
        let since = Instant::now();
        let mut now = self.said.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let new = &now.bytes[self.read..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let end = at + text.len();
                let found = String::from_utf8_lossy(&new[..end]).into_owned();
                self.read += end;
                return found;
            }
            let why = match &now.ended {
                Some(why) => why.clone(),
                None if since.elapsed() >= limit => format!("waited {limit:?}"),
                None => {
                    let (next, _) = self
                        .said
                        .more
                        .wait_timeout(now, Duration::from_secs(1))
                        .unwrap_or_else(PoisonError::into_inner);
                    now = next;
                    continue;
                }
            };
            let rest = String::from_utf8_lossy(new).into_owned();
            drop(now);
            panic!("{} did not say '{text}': {why}. It said:\n{rest}", self.vm);
        }
    }

    /// What was said and not read yet; reads it.
    pub fn read(&mut self) -> String {
        let now = self.said.text.lock().unwrap_or_else(PoisonError::into_inner);
        let new = String::from_utf8_lossy(&now.bytes[self.read..]).into_owned();
        self.read = now.bytes.len();
        new
    }

    /// Types a line.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        let typed = format!("{line}\n").into_bytes();
        let sent = self.runtime.block_on(self.input.send(typed.into()));
        sent.unwrap_or_else(|e| panic!("type '{line}' to {}: {e}", self.vm));
    }

    /// Runs a command at a shell; what it printed, for it has to succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let (status, said) = self.try_run(command);
        assert_eq!(status, 0, "{command}: {said}");
        said
    }

    /// Runs a command at a shell; its exit status and what it printed.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> (u32, String) {
        // Unique, for a console begins with what earlier ones said.
        static COMMANDS: AtomicU32 = AtomicU32::new(1);
        let n = COMMANDS.fetch_add(1, Ordering::Relaxed);
        // The quotes tell what was typed from what was printed.
        self.send(&format!("echo '<'{n}'>'; {command}; echo '<'{n}'='$?'>'"));
        self.expect(&format!("<{n}>"));
        let said = self.expect(&format!("<{n}="));
        let status = self.expect(">");
        let status = status.trim_end_matches('>').parse().unwrap_or_else(|_| {
            panic!("{command}: '{status}' is not an exit status");
        });
        let said = said.trim_end_matches(&format!("<{n}="));
        (status, without_services(&said.replace('\r', "")))
    }
}

/// Without the lines that a micro guest's own services print at any time.
fn without_services(said: &str) -> String {
    const SERVICES: [&str; 3] = ["micro: ", "tcp-echo: ", "power-button: "];
    let lines = said.lines().filter(|line| !SERVICES.iter().any(|s| line.starts_with(s)));
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

async fn collect(mut output: ConsoleOutput, said: Arc<Said>) {
    loop {
        let next = output.next().await;
        let mut text = said.text.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Ok(Some(bytes)) => text.bytes.extend_from_slice(&bytes),
            Ok(None) => text.ended = Some("the console was closed".to_owned()),
            Err(e) => text.ended = Some(e.to_string()),
        }
        let over = text.ended.is_some();
        drop(text);
        said.more.notify_all();
        if over {
            return;
        }
    }
}
