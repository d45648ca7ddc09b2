//! As much QMP as it takes to drive QEMU by hand.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Returns once QEMU says that the guest runs.
pub fn wait_running(socket: &Path) -> anyhow::Result<()> {
    let status = Qmp::connect(socket)?.execute("query-status", json!({}))?;
    if status["status"] != "running" {
        bail!("the machine does not run: {status}");
    }
    Ok(())
}

/// A monitor. Events are skipped.
pub struct Qmp {
    stream: UnixStream,
    lines: std::io::Lines<BufReader<UnixStream>>,
}

impl Qmp {
    pub fn connect(socket: &Path) -> anyhow::Result<Qmp> {
        let stream = UnixStream::connect(socket).context("connect to QMP")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let mut qmp = Qmp { stream, lines };
        qmp.next().context("the greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{request}\n").as_bytes())?;
        let mut answer = self.next()?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: {error}");
        }
        Ok(answer["return"].take())
    }

    fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            let line = self.lines.next().context("QEMU closed its monitor")??;
            let value: Value = serde_json::from_str(&line)?;
            if value.get("event").is_none() {
                return Ok(value);
            }
        }
    }
}
