//! Pure. How a member is set up, as etcd's arguments.
//!
//! Time: a member that hears nothing for 1 to 2 s (etcd draws the time anew for each)
//! stands for election, so a dead leader is replaced within about 2 s. Ten heartbeats
//! fit into the shortest wait: a machine under load may lose or delay nine of them. A
//! shorter time was not worth it: a slow fsync or a busy CPU would then cost more
//! elections than a dead server saves. A member that was cut off asks before it
//! stands (`--pre-vote`), so its return disturbs nobody.
//!
//! Room: history is kept for half an hour, which is longer than any watch takes to
//! come back, and than the ten minutes at which etcd tells a quiet watch how far it
//! is. 4 GiB hold that at some hundred changes a second. A log of 20,000 changes is
//! what a member that was away can catch up from without a new copy of everything.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A member of the cluster on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberConfig {
    /// `etcd`, found in the PATH, or a path.
    pub program: PathBuf,
    /// Unique in the cluster, and never used twice for different data: the server's id.
    pub name: String,
    /// Everything of the member: `data/` and whose they are, its log.
    pub dir: PathBuf,
    /// Where other servers reach it.
    pub address: IpAddr,
    pub client_port: u16,
    pub peer_port: u16,
    /// `None`: neither encrypted nor checked, for tests.
    pub tls: Option<MemberTls>,
    /// What a member without data does. One that has data ignores it.
    pub beginning: Beginning,
}

/// PEM files, read anew at every handshake (not `ca`, read once): replace them by
/// rename. Certificate and key may be in one file, which then is replaced as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberTls {
    pub ca: PathBuf,
    /// For servers and clients, with the member's IP address.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Certificates that are no longer let in. It must exist, and hold a list.
    pub revoked: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// The first member. The token tells clusters apart: unique.
    New { token: String },
    /// One more, which the others have been told of (`EtcdAdmin::add_learner`).
    Join { others: Vec<Peer> },
}

/// A member that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub url: String,
}

const HEARTBEAT_MS: u32 = 100;
const ELECTION_MS: u32 = 1000;
const QUOTA_BYTES: u64 = 4 << 30;
const HISTORY: &str = "30m";
const LOG_ENTRIES: u32 = 20_000;

impl MemberConfig {
    pub fn client_url(&self) -> String {
        self.url(self.client_port)
    }

    pub fn peer_url(&self) -> String {
        self.url(self.peer_port)
    }

    fn url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(self.address, port))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Whose the data are: see `resident`.
    pub(super) fn id_file(&self) -> PathBuf {
        self.dir.join("member-id")
    }

    /// The argument that tells this member's process from every other.
    pub fn mark(&self) -> String {
        format!("--data-dir={}", self.data_dir().display())
    }

    pub fn arguments(&self) -> Vec<String> {
        let (client, peer) = (self.client_url(), self.peer_url());
        let mut arguments = vec![
            format!("--name={}", self.name),
            self.mark(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--heartbeat-interval={HEARTBEAT_MS}"),
            format!("--election-timeout={ELECTION_MS}"),
            "--pre-vote=true".to_owned(),
            "--auto-compaction-mode=periodic".to_owned(),
            format!("--auto-compaction-retention={HISTORY}"),
            format!("--quota-backend-bytes={QUOTA_BYTES}"),
            format!("--snapshot-count={LOG_ENTRIES}"),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
            "--log-outputs=stderr".to_owned(),
        ];
        if let Some(tls) = &self.tls {
            arguments.extend(tls.arguments());
        }
        arguments.extend(self.initial());
        arguments
    }

    /// Settings whose names differ between etcd's versions: an argument that it does not
    /// know would keep it from starting, a variable does not.
    ///
    /// By default a member lets a peer in only from an address in the peer's
    /// certificate. A server with several addresses may come from another one than it
    /// is reached at. Who it is, the CA and the list of revoked certificates say.
    pub fn environment(&self) -> [(&'static str, &'static str); 2] {
        [
            ("ETCD_EXPERIMENTAL_PEER_SKIP_CLIENT_SAN_VERIFICATION", "true"),
            ("ETCD_PEER_SKIP_CLIENT_SAN_VERIFICATION", "true"),
        ]
    }

    fn initial(&self) -> Vec<String> {
        let this = format!("{}={}", self.name, self.peer_url());
        match &self.beginning {
            Beginning::New { token } => vec![
                format!("--initial-cluster={this}"),
                format!("--initial-cluster-token={token}"),
                "--initial-cluster-state=new".to_owned(),
            ],
            Beginning::Join { others } => {
                let mut all: Vec<String> =
                    others.iter().map(|peer| format!("{}={}", peer.name, peer.url)).collect();
                all.push(this);
                vec![
                    format!("--initial-cluster={}", all.join(",")),
                    "--initial-cluster-state=existing".to_owned(),
                ]
            }
        }
    }
}

impl MemberTls {
    fn arguments(&self) -> Vec<String> {
        let MemberTls { ca, certificate, key, revoked } = self;
        let mut arguments = Vec::new();
        for (trusted, prefix) in [("trusted-ca-file", ""), ("peer-trusted-ca-file", "peer-")] {
            arguments.push(format!("--{trusted}={}", ca.display()));
            arguments.push(format!("--{prefix}cert-file={}", certificate.display()));
            arguments.push(format!("--{prefix}key-file={}", key.display()));
        }
        arguments.push("--client-cert-auth=true".to_owned());
        arguments.push("--peer-client-cert-auth=true".to_owned());
        if let Some(revoked) = revoked {
            arguments.push(format!("--client-crl-file={}", revoked.display()));
            arguments.push(format!("--peer-crl-file={}", revoked.display()));
        }
        arguments
    }
}

/// Whether a process that was started with these arguments is set up like that. How
/// it once began does not matter.
pub fn is_current(running: &[String], wanted: &[String]) -> bool {
    let lasting = |arguments: &[String]| -> Vec<String> {
        let lasts = |a: &&String| !a.starts_with("--initial-");
        arguments.iter().filter(lasts).cloned().collect()
    };
    lasting(running) == lasting(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(beginning: Beginning, tls: bool) -> MemberConfig {
        let pki = |name: &str| PathBuf::from("/var/lib/basin/cluster/pki").join(name);
        let (certificate, key) = (pki("server.pem"), pki("server.pem"));
        MemberConfig {
            program: "etcd".into(),
            name: "a1".to_owned(),
            dir: "/var/lib/basin/cluster/etcd".into(),
            address: "10.0.0.1".parse().unwrap(),
            client_port: 2379,
            peer_port: 2380,
            tls: tls.then(|| MemberTls {
                ca: pki("ca.pem"),
                certificate,
                key,
                revoked: Some(pki("revoked.pem")),
            }),
            beginning,
        }
    }

    const COMMON: &str = "\
--heartbeat-interval=100
--election-timeout=1000
--pre-vote=true
--auto-compaction-mode=periodic
--auto-compaction-retention=30m
--quota-backend-bytes=4294967296
--snapshot-count=20000
--logger=zap
--log-level=warn
--log-outputs=stderr";

    #[test]
    fn the_first_member() {
        let config = config(Beginning::New { token: "t1".to_owned() }, true);
        let expect = format!(
            "\
--name=a1
--data-dir=/var/lib/basin/cluster/etcd/data
--listen-client-urls=https://10.0.0.1:2379
--advertise-client-urls=https://10.0.0.1:2379
--listen-peer-urls=https://10.0.0.1:2380
--initial-advertise-peer-urls=https://10.0.0.1:2380
{COMMON}
--trusted-ca-file=/var/lib/basin/cluster/pki/ca.pem
--cert-file=/var/lib/basin/cluster/pki/server.pem
--key-file=/var/lib/basin/cluster/pki/server.pem
--peer-trusted-ca-file=/var/lib/basin/cluster/pki/ca.pem
--peer-cert-file=/var/lib/basin/cluster/pki/server.pem
--peer-key-file=/var/lib/basin/cluster/pki/server.pem
--client-cert-auth=true
--peer-client-cert-auth=true
--client-crl-file=/var/lib/basin/cluster/pki/revoked.pem
--peer-crl-file=/var/lib/basin/cluster/pki/revoked.pem
--initial-cluster=a1=https://10.0.0.1:2380
--initial-cluster-token=t1
--initial-cluster-state=new"
        );
        assert_eq!(config.arguments().join("\n"), expect);
    }

    #[test]
    fn a_member_that_joins() {
        let others = vec![Peer { name: "b2".to_owned(), url: "http://10.0.0.2:2380".to_owned() }];
        let mut config = config(Beginning::Join { others }, false);
        config.address = "fd00::1".parse().unwrap();
        let expect = format!(
            "\
--name=a1
--data-dir=/var/lib/basin/cluster/etcd/data
--listen-client-urls=http://[fd00::1]:2379
--advertise-client-urls=http://[fd00::1]:2379
--listen-peer-urls=http://[fd00::1]:2380
--initial-advertise-peer-urls=http://[fd00::1]:2380
{COMMON}
--initial-cluster=b2=http://10.0.0.2:2380,a1=http://[fd00::1]:2380
--initial-cluster-state=existing"
        );
        assert_eq!(config.arguments().join("\n"), expect);
    }

    #[test]
    fn only_what_lasts_is_compared() {
        let new = config(Beginning::New { token: "t".to_owned() }, true).arguments();
        let joined = config(Beginning::Join { others: Vec::new() }, true).arguments();
        assert!(is_current(&new, &joined));
        let plain = config(Beginning::Join { others: Vec::new() }, false).arguments();
        assert!(!is_current(&new, &plain));
    }
}
