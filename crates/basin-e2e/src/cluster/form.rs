//! Servers become one cluster, the way people do it, and what they say of each other.

use basin_api::cluster::Mode;
use basin_api::host::Host;

use super::Cluster;
use crate::server::{Cli, Server};
use crate::start::Setup;
use crate::wait::until;

impl Cluster {
    /// `basin init` on the first server, `basin join` on each of the others.
    #[track_caller]
    pub fn form(&self) {
        self.init();
        for n in 1..self.servers.len() {
            self.join(n);
        }
    }

    /// `basin init` on the first server.
    #[track_caller]
    pub fn init(&self) {
        let address = self.address(0).to_string();
        self.servers[0].cli(&["init", "--advertise", &address]).ok();
    }

    /// One server joins the first one's cluster.
    #[track_caller]
    pub fn join(&self, n: usize) {
        self.try_join(n, &self.servers[0].join_token(&[])).ok();
    }

    /// One server asks the first one's cluster to let it in.
    #[track_caller]
    pub fn try_join(&self, n: usize, token: &str) -> Cli {
        let (url, address) = (self.url(0), self.address(n).to_string());
        self.servers[n].cli(&["join", &url, "--token", token, "--advertise", &address])
    }

    /// Has one of the servers lead, with its daemon set up anew; some may be stopped. What
    /// they keep running, guests and etcd, goes on.
    #[track_caller]
    pub fn have_lead(&self, n: usize, change: impl FnOnce(Setup) -> Setup) {
        let leader = &self.servers[n];
        let each = |work: fn(&Server), but: Option<usize>| {
            std::thread::scope(|scope| {
                let others = self.servers.iter().enumerate().filter(|(m, _)| Some(*m) != but);
                others.for_each(|(_, server)| drop(scope.spawn(|| work(server))));
            });
        };
        each(
            |server| {
                if server.is_up() {
                    server.stop()
                }
            },
            None,
        );
        leader.set_up(change);
        // Alone, it is elected.
        leader.boot();
        // As it says itself; the store may name an earlier daemon of its for a while.
        until("it leads", || leader.leads());
        each(Server::boot, Some(n));
        let name = leader.ok(leader.client().version()).host;
        for server in &self.servers {
            until("all know who leads", || server.leader().as_deref() == Some(&name));
        }
    }

    /// Waits until so many servers have a member of etcd.
    #[track_caller]
    pub fn wait_members(&self, asked: usize, count: usize) {
        let server = &self.servers[asked];
        until(&format!("{count} servers keep the state"), || server.members().len() == count);
    }
}

impl Server {
    #[track_caller]
    pub fn join_token(&self, more: &[&str]) -> String {
        let create = [&["token", "create", "--join"], more].concat();
        self.cli(&create).ok().trim().to_owned()
    }

    /// The names of the servers that this one knows of; none if it does not answer.
    pub fn host_names(&self) -> Vec<String> {
        let list = self.call(self.client().list::<Host>());
        let mut names: Vec<String> =
            list.map(|l| l.items.into_iter().map(|h| h.meta.name).collect()).unwrap_or_default();
        names.sort();
        names
    }

    /// The servers that keep the state, as this one knows.
    pub fn members(&self) -> Vec<String> {
        let store = self.call(self.client().cluster()).ok().and_then(|c| c.store);
        let members = store.map(|s| s.members).unwrap_or_default();
        members.into_iter().filter_map(|m| m.name).collect()
    }

    /// Whether it leads, as it says itself.
    pub fn leads(&self) -> bool {
        let ask = "curl -sk https://127.0.0.1:7443/internal/v1/leads || true";
        self.sh(ask).trim() == "true"
    }

    /// The server that leads, as this one knows.
    pub fn leader(&self) -> Option<String> {
        self.call(self.client().cluster()).ok()?.leader?.name
    }

    /// Whether it is one of a cluster; none if it does not answer.
    pub fn mode(&self) -> Option<Mode> {
        self.call(self.client().cluster()).ok().map(|c| c.mode)
    }
}
