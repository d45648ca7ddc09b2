//! As much QMP as it takes to see that a machine runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// Returns once QEMU says that the guest runs.
pub fn wait_running(socket: &Path) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect to QMP")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || -> anyhow::Result<Value> {
        loop {
            let line = lines.next().context("QEMU closed its monitor")??;
            let value: Value = serde_json::from_str(&line)?;
            if value.get("event").is_none() {
                return Ok(value);
            }
        }
    };
    next().context("the greeting")?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
    next()?;
    let status = next()?;
    if status["return"]["status"] != "running" {
        bail!("the machine does not run: {status}");
    }
    Ok(())
}
