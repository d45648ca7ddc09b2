//! nftables through `nft`, and the kernel's count of its changes.

use std::io;
use std::process::Stdio;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::fabric::NetError;
use crate::names::Instance;
use crate::rules::{self, Ruleset};
use crate::state::Firewall;

const MISSING: NetError = NetError::Missing {
    program: "nft",
    advice: "networks need it; install it with: apt-get install nftables",
};

fn refused(what: &str, why: impl Into<String>) -> NetError {
    NetError::Refused { what: what.to_owned(), why: why.into() }
}

/// Runs a script as one transaction: all of it or nothing.
async fn run(what: &str, script: &str) -> Result<String, NetError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MISSING),
        other => other.map_err(|e| refused(what, e.to_string()))?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A failure to write shows in what nft says.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| refused(what, e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(refused(what, text.lines().next().unwrap_or("nft failed").to_owned()))
}

/// How many times this namespace's rules were changed, by anybody.
fn generation() -> io::Result<u32> {
    const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
    const NLM_F_REQUEST: u16 = 1;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = Vec::with_capacity(20);
    message.extend(20u32.to_ne_bytes());
    message.extend(NFT_MSG_GETGEN.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 12]); // sequence, port; family, version, resource
    socket.send(&message, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    // A header of 16, the family's of 4, then attribute 1: the count, big endian.
    match reply.get(20..28) {
        Some([_, _, 1, 0, a, b, c, d]) => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(io::Error::other("the kernel did not say its nftables generation")),
    }
}

/// What this daemon knows of its own tables.
#[derive(Default)]
pub struct Nft {
    known: Option<Known>,
}

struct Known {
    generation: u32,
    firewall: Firewall,
    /// How `nft` lists what was loaded; to tell others' changes from changes to ours.
    listing: Option<String>,
}

impl Nft {
    /// Costs no process while nothing in the namespace changed.
    pub async fn observe(&mut self, instance: &Instance) -> Result<Firewall, NetError> {
        let Ok(now) = generation() else {
            self.known = None;
            return present(instance).await;
        };
        if let Some(known) = &mut self.known {
            if known.generation == now {
                return Ok(known.firewall.clone());
            }
            if known.listing.is_some()
                && known.listing == list(instance).await
                && generation().is_ok_and(|g| g == now)
            {
                known.generation = now;
                return Ok(known.firewall.clone());
            }
        }
        let firewall = present(instance).await?;
        let absent = Known { generation: now, firewall: Firewall::Absent, listing: None };
        self.known = (firewall == Firewall::Absent).then_some(absent);
        Ok(firewall)
    }

    pub async fn load(&mut self, instance: &Instance, ruleset: &Ruleset) -> Result<(), NetError> {
        const WHAT: &str = "loading the firewall of networks";
        let then = || Firewall::Loaded(ruleset.clone());
        let known = self.known.take().filter(|k| generation().is_ok_and(|g| g == k.generation));
        if let Some(Known { firewall: Firewall::Loaded(old), .. }) = &known
            && let Some(script) = ruleset.change(old, instance)
        {
            if script.is_empty() {
                self.known = known;
                return Ok(());
            }
            if self.change(WHAT, &script, then()).await.is_ok() {
                return Ok(());
            }
        }
        self.change(WHAT, &ruleset.text(instance), then()).await
    }

    pub async fn remove(&mut self, instance: &Instance) -> Result<(), NetError> {
        let script = rules::removal(instance);
        self.change("removing the firewall of networks", &script, Firewall::Absent).await
    }

    async fn change(&mut self, what: &str, script: &str, then: Firewall) -> Result<(), NetError> {
        self.known = None;
        let before = generation();
        run(what, script).await?;
        // If anybody else changed rules in between, it is not known what holds.
        if let (Ok(before), Ok(after)) = (before, generation())
            && after == before.wrapping_add(1)
        {
            self.known = Some(Known { generation: after, firewall: then, listing: None });
        }
        Ok(())
    }

    /// For an idle moment: learns how the loaded rules look when listed.
    pub async fn learn(&mut self, instance: &Instance) {
        let Some(known) = &mut self.known else { return };
        if known.listing.is_none() && matches!(known.firewall, Firewall::Loaded(_)) {
            let listing = list(instance).await;
            if generation().is_ok_and(|g| g == known.generation) {
                known.listing = listing;
            }
        }
    }
}

/// Both tables as nft lists them. One after the other: in one script, nft 1.0
/// finds only the first.
async fn list(instance: &Instance) -> Option<String> {
    let mut listing = String::new();
    for family in ["bridge", "inet"] {
        let script = format!("list table {family} {}\n", instance.table());
        listing += &run("listing rules", &script).await.ok()?;
    }
    Some(listing)
}

/// All chains of the namespace, as JSON; nothing without nft.
pub async fn chains() -> String {
    let listed = Command::new("nft").args(["-j", "list", "chains"]).env("LC_ALL", "C").output();
    listed.await.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

async fn present(instance: &Instance) -> Result<Firewall, NetError> {
    let table = instance.table();
    match run("listing nftables", "list tables\n").await {
        // Without nft nothing of ours can have been loaded; loading will say so.
        Err(NetError::Missing { .. }) => Ok(Firewall::Absent),
        Err(e) => Err(e),
        Ok(text) => {
            let ours = |line: &str| line.rsplit(' ').next() == Some(table.as_str());
            Ok(if text.lines().any(ours) { Firewall::Unknown } else { Firewall::Absent })
        }
    }
}
