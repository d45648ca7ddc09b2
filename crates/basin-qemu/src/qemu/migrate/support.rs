//! What the QEMU of this server can do as source and target.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::super::{Inner, firmware};
use crate::engine::EngineError;
use crate::migrate::MigrationSupport;

const USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";

const QUESTIONS: &[u8] = b"{\"execute\":\"qmp_capabilities\"}
{\"execute\":\"query-migrate-capabilities\"}
{\"execute\":\"query-machines\"}
{\"execute\":\"migrate-set-parameters\",\"id\":\"zstd\",\"arguments\":{\"multifd-compression\":\"zstd\"}}
{\"execute\":\"quit\"}
";

/// Asks a QEMU that runs no guest.
pub async fn support(inner: &Inner) -> Result<MigrationSupport, EngineError> {
    let program = inner.program()?;
    let unusable = |why: String| EngineError::Unusable(format!("{}: {why}", program.display()));
    let mut command = Command::new(program);
    command.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-S", "-qmp", "stdio"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let asking = async {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            stdin.write_all(QUESTIONS).await?;
        }
        // Its input stays open until it has answered and ended.
        let output = child.wait_with_output().await;
        drop(stdin);
        output
    };
    let output = match tokio::time::timeout(inner.config.start_limit, asking).await {
        Ok(output) => output.map_err(|error| unusable(error.to_string()))?,
        Err(_) => return Err(unusable("it does not say what it can do".to_owned())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let (capabilities, machines) = read(&text);
    if capabilities.is_empty() || machines.is_empty() {
        return Err(unusable("it does not say what it can migrate".to_owned()));
    }
    let no_postcopy = match capabilities.contains("postcopy-ram") {
        true => no_userfaultfd(),
        false => Some("QEMU of this server has no post-copy".to_owned()),
    };
    Ok(MigrationSupport {
        version: inner.version()?.to_owned(),
        machines,
        compression: compresses(&text),
        capabilities,
        no_postcopy,
        // Others serve them, and say so.
        disks_by_postcopy: false,
        accelerator: inner.accelerator.as_str().to_owned(),
        flash: firmware::find(None).ok().and_then(|uefi| uefi.flash()),
    })
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    result: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    capability: Option<String>,
    name: Option<String>,
}

fn read(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut found = (BTreeSet::new(), BTreeSet::new());
    for answer in text.lines().filter_map(|line| serde_json::from_str::<Answer>(line).ok()) {
        for Named { capability, name } in answer.result {
            found.0.extend(capability);
            found.1.extend(name);
        }
    }
    found
}

/// Whether it has taken the setting.
fn compresses(text: &str) -> bool {
    let answers = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    answers.into_iter().any(|answer| answer["id"] == "zstd" && answer.get("return").is_some())
}

/// Kernels that have no such switch allow it, as long as they have post-copy's faults.
fn no_userfaultfd() -> Option<String> {
    match fs::read_to_string(USERFAULTFD) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(format!("{USERFAULTFD}: {error}"))
        }
        _ => None,
    }
}

/// Lets processes without privileges handle page faults by themselves, which a target of
/// post-copy does (decision 0122). Done when the first such target comes, and not undone.
pub fn permit_postcopy() -> Result<(), EngineError> {
    match fs::read_to_string(USERFAULTFD) {
        Ok(text) if text.trim() == "0" => {}
        _ => return Ok(()),
    }
    tracing::info!("sets vm.unprivileged_userfaultfd to 1: a machine comes by post-copy");
    fs::write(USERFAULTFD, "1").map_err(|source| EngineError::Io {
        what: "allow post-copy (set vm.unprivileged_userfaultfd to 1)".to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_are_told_apart() {
        let text = r#"{"QMP":{"version":{}}}
{"return":{}}
{"return":[{"state":false,"capability":"xbzrle"},{"state":false,"capability":"events"}]}
{"return":[{"hotpluggable-cpus":true,"name":"pc-q35-7.2","cpu-max":288},{"name":"microvm"}]}
{"event":"SHUTDOWN"}"#;
        let (capabilities, machines) = read(text);
        assert_eq!(Vec::from_iter(capabilities), ["events", "xbzrle"]);
        assert_eq!(Vec::from_iter(machines), ["microvm", "pc-q35-7.2"]);
        assert!(!compresses(text));
        assert!(compresses(r#"{"id":"zstd","return":{}}"#));
        assert!(!compresses(r#"{"id":"zstd","error":{"class":"GenericError","desc":"no"}}"#));
    }
}
