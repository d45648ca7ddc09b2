//! A new cluster of one member from a backup.
//!
//! By etcd's own tool: it alone knows what a backup needs before a member may use it
//! (a log that begins at its state, and members that are forgotten). The new cluster
//! has an id of its own, so that no old member can meet it, and every watch learns
//! that its history is another one.

use std::fs;
use std::io;
use std::path::Path;

use basin_model::task::Problem;
use tokio::process::Command;

use super::config::{Beginning, MemberConfig};
use super::process;
use crate::problem::problem;

/// Makes the member's data those of the backup; start the member after that. The
/// configuration must begin a new cluster, with a token that none had before. What
/// the member held is put aside as `data.before-restore`. Beginning anew is safe.
pub async fn restore(config: &MemberConfig, backup: &Path) -> Result<(), Problem> {
    let Beginning::New { token } = &config.beginning else {
        let detail = "a backup can only begin a new cluster";
        return Err(problem("restore-refused", detail, "report this as a defect of Basin"));
    };
    if let Some(running) = process::find(config) {
        let detail = format!("etcd runs here, as process {}", running.pid);
        return Err(problem("restore-refused", detail, "stop the daemon and etcd first"));
    }
    let (data, new) = (config.data_dir(), config.dir.join("data.new"));
    let about = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| {
            problem("restore-failed", format!("cannot {what}: {e}"), "check the file system")
        }
    };
    remove(&new).map_err(about("delete what an earlier attempt left"))?;
    fs::create_dir_all(&config.dir).map_err(about("make the cluster's directory"))?;
    unpack(config, token, backup, &new).await?;
    if data.exists() {
        let aside = config.dir.join("data.before-restore");
        remove(&aside).map_err(about("delete what an earlier restore put aside"))?;
        fs::rename(&data, &aside).map_err(about("put the old data aside"))?;
    }
    remove_id(config).map_err(about("forget whose the old data were"))?;
    fs::rename(&new, &data).map_err(about("put the new data in place"))?;
    let synced = fs::File::open(&config.dir).and_then(|dir| dir.sync_all());
    synced.map_err(about("write the cluster's directory"))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn remove_id(config: &MemberConfig) -> io::Result<()> {
    match fs::remove_file(config.id_file()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// etcd 3.6 has only the former, 3.4 only the latter.
const TOOLS: [&str; 2] = ["etcdutl", "etcdctl"];

async fn unpack(
    config: &MemberConfig,
    token: &str,
    backup: &Path,
    to: &Path,
) -> Result<(), Problem> {
    let peer = config.peer_url();
    for tool in TOOLS {
        let mut command = Command::new(tool);
        command.args(["snapshot", "restore"]).arg(backup);
        command.arg(format!("--data-dir={}", to.display()));
        command.arg(format!("--name={}", config.name));
        command.arg(format!("--initial-cluster={}={peer}", config.name));
        command.arg(format!("--initial-advertise-peer-urls={peer}"));
        command.arg(format!("--initial-cluster-token={token}"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("ETCDCTL_API", "3");
        let output = match command.kill_on_drop(true).output().await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => {
                let advice = "reinstall etcd-client";
                return Err(problem("restore-failed", format!("cannot run {tool}: {e}"), advice));
            }
            Ok(output) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("nothing").to_owned();
        let detail = format!("{} cannot be restored: {tool} says: {said}", backup.display());
        return Err(problem("restore-failed", detail, "check the file, or use another backup"));
    }
    let detail = "etcd's tool for backups is missing";
    Err(problem("program-missing", detail, "install it with: apt-get install etcd-client"))
}
