//! The member of this server, if it has one: as etcd's list of members says.
//!
//! A member's data are good for one membership only. Their id is in a file beside
//! them, written before they begin, so that data of an earlier membership are never
//! taken for those of this one, and a member that lost its data never votes again
//! (it could vote against what it had promised).

use std::fs;
use std::io::{self, ErrorKind};

use basin_model::task::Problem;
use basin_qemu::qemu::cgroup::MachineCgroup;
use basin_store::etcd::Member;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::config::{Beginning, MemberConfig, Peer};
use super::member::EtcdMember;
use crate::files;
use crate::problem::problem;

/// See the module.
pub struct Resident {
    config: MemberConfig,
    cgroup: Option<MachineCgroup>,
    stop: CancellationToken,
    running: Mutex<Option<EtcdMember>>,
}

impl Resident {
    /// Starts nothing. What it starts is watched until `stop`, and goes on after that.
    pub fn new(
        config: MemberConfig,
        cgroup: Option<MachineCgroup>,
        stop: CancellationToken,
    ) -> Resident {
        Resident { config, cgroup, stop, running: Mutex::default() }
    }

    pub async fn member(&self) -> Option<EtcdMember> {
        self.running.lock().await.clone()
    }

    /// Begins a new cluster, of this member. What it holds already, it goes on with: if
    /// that may be of another cluster, [`Resident::clear_all`] comes first.
    pub async fn begin(&self, token: String) -> Result<EtcdMember, Problem> {
        let mut running = self.running.lock().await;
        if !has_data(&self.config) {
            self.let_go()?;
        }
        Ok(self.run(&mut running, Beginning::New { token }).await)
    }

    /// When the daemon starts: a member with data runs, before anybody can be asked.
    pub async fn resume(&self) -> Option<EtcdMember> {
        let mut running = self.running.lock().await;
        if !has_data(&self.config) {
            return None;
        }
        Some(self.run(&mut running, Beginning::Join { others: Vec::new() }).await)
    }

    /// Starts, keeps or removes the member, as the list says. Call it now and then with
    /// what [`basin_store::etcd::EtcdStore::members`] gives.
    pub async fn tend(&self, members: &[Member]) -> Result<Option<EtcdMember>, Problem> {
        let mut running = self.running.lock().await;
        let held = held(&self.config).map_err(|e| self.remains(&e))?;
        match verdict(&self.config, members, held, has_data(&self.config)) {
            Verdict::None => Ok(None),
            Verdict::Keep { id } => {
                self.hold(id)?;
                let others = Vec::new();
                Ok(Some(self.run(&mut running, Beginning::Join { others }).await))
            }
            Verdict::Join { id } => {
                let beginning = Beginning::Join { others: peers(&self.config, members) };
                let begins = running.as_ref().is_some_and(|m| m.config().beginning == beginning);
                // On a busy server it takes longer to begin than until the list is looked
                // at again.
                if !begins || held != Some(id) {
                    self.clear(&mut running).await?;
                    self.hold(id)?;
                }
                Ok(Some(self.run(&mut running, beginning).await))
            }
            Verdict::Leave => {
                tracing::info!("this server's member was removed from etcd: its data go");
                self.clear(&mut running).await?;
                Ok(None)
            }
            Verdict::Lost => Err(problem(
                "etcd-data-lost",
                format!("{} is empty or another member's", self.config.data_dir().display()),
                "nothing has to be done: another server takes the vote, or this one gets a new \
                 one, when it has been down for long",
            )),
        }
    }

    /// Ends the member and deletes what it holds: when the cluster is left, or was
    /// never finished.
    pub async fn clear_all(&self) -> Result<(), Problem> {
        self.clear(&mut *self.running.lock().await).await
    }

    async fn run(&self, running: &mut Option<EtcdMember>, beginning: Beginning) -> EtcdMember {
        match running {
            Some(member) => member.clone(),
            None => {
                let config = MemberConfig { beginning, ..self.config.clone() };
                let member = EtcdMember::start(config, self.cgroup.clone(), &self.stop).await;
                running.insert(member).clone()
            }
        }
    }

    async fn clear(&self, running: &mut Option<EtcdMember>) -> Result<(), Problem> {
        match running.take() {
            Some(member) => member.remove().await?,
            None => EtcdMember::remove_stray(&self.config, self.cgroup.clone()).await?,
        }
        self.let_go()
    }

    fn let_go(&self) -> Result<(), Problem> {
        match fs::remove_file(self.config.id_file()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.remains(&e)),
            _ => Ok(()),
        }
    }

    fn hold(&self, id: u64) -> Result<(), Problem> {
        let write = || match held(&self.config)? {
            Some(known) if known == id => Ok(()),
            _ => files::write(&self.config.id_file(), format!("{id:x}\n").as_bytes(), 0o600, None),
        };
        write().map_err(|e| self.remains(&e))
    }

    fn remains(&self, error: &io::Error) -> Problem {
        let detail = format!("{}: {error}", self.config.id_file().display());
        problem("etcd-directory", detail, "check the file system")
    }
}

fn has_data(config: &MemberConfig) -> bool {
    // What etcd itself looks for.
    fs::read_dir(config.data_dir().join("member/wal")).is_ok_and(|mut dir| dir.next().is_some())
}

/// Whose data are here, if that is known.
fn held(config: &MemberConfig) -> io::Result<Option<u64>> {
    match fs::read_to_string(config.id_file()) {
        Ok(text) => Ok(u64::from_str_radix(text.trim(), 16).ok()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// No member here, and none meant.
    None,
    Keep {
        id: u64,
    },
    /// With nothing, whatever is here.
    Join {
        id: u64,
    },
    Leave,
    /// Listed, but its data are not here.
    Lost,
}

/// Pure.
fn verdict(config: &MemberConfig, members: &[Member], held: Option<u64>, data: bool) -> Verdict {
    let peer_url = config.peer_url();
    let ours = |m: &&Member| {
        // Somebody else's old member may still be listed with this address.
        m.name == config.name || !m.started() && m.peer_urls.contains(&peer_url)
    };
    match (members.iter().find(ours), held) {
        // A cluster has members: an empty list is nobody's word.
        (None, _) if members.is_empty() => Verdict::None,
        (None, None) if !data => Verdict::None,
        (None, _) => Verdict::Leave,
        (Some(m), Some(id)) if id == m.id && data => Verdict::Keep { id },
        // The first member does not know its id before it runs.
        (Some(m), None) if data && m.started() => Verdict::Keep { id: m.id },
        // It was added and never ran: nothing can be lost.
        (Some(m), _) if !m.started() && m.learner => Verdict::Join { id: m.id },
        (Some(_), _) => Verdict::Lost,
    }
}

/// etcd finds members by their addresses; names need only differ.
fn peers(config: &MemberConfig, members: &[Member]) -> Vec<Peer> {
    let this = config.peer_url();
    let others = members.iter().filter(|m| !m.peer_urls.contains(&this));
    let peer = |m: &Member| {
        let name = if m.started() { m.name.clone() } else { format!("{:x}", m.id) };
        let all = m.peer_urls.iter().map(move |url| Peer { name: name.clone(), url: url.clone() });
        all.collect::<Vec<_>>()
    };
    others.flat_map(peer).collect()
}

#[cfg(test)]
#[path = "resident_tests.rs"]
mod tests;
