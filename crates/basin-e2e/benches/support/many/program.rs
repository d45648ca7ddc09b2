//! A program that says on its output, line by line, what is awaited of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::broadcast;

/// Ends with this value.
pub struct Program {
    child: Child,
    /// From before the program ran, so that nothing it says is missed.
    first: broadcast::Receiver<String>,
}

/// How long anything may take to come up.
const PATIENCE: Duration = Duration::from_secs(240);
const LINES: usize = 1 << 16;

impl Program {
    pub fn start(mut command: Command) -> anyhow::Result<Program> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let out = child.stdout.take().context("its output")?;
        let (sender, first) = broadcast::channel(LINES);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // Nobody listens now.
                let _ = sender.send(line);
            }
        });
        Ok(Program { child, first })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lines(&self) -> broadcast::Receiver<String> {
        self.first.resubscribe()
    }

    /// Waits for a line.
    pub async fn says(&mut self, line: &str) -> anyhow::Result<()> {
        let awaited = async {
            loop {
                match self.first.recv().await {
                    Ok(said) if said == line => return Ok(()),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => bail!("it ended"),
                }
            }
        };
        let said = tokio::time::timeout(PATIENCE, awaited).await;
        said.map_err(anyhow::Error::from).flatten().with_context(|| format!("waiting for '{line}'"))
    }

    /// Waits for its end.
    pub fn done(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a program failed: {status}");
        }
        Ok(())
    }

    pub fn kill(&mut self) {
        // It has ended already otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
