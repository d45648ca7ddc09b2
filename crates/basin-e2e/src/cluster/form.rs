//! Servers become one cluster, the way people do it.

use super::Cluster;

impl Cluster {
    /// `basin init` on the first server, `basin join` on each of the others.
    #[track_caller]
    pub fn form(&self) {
        let address = self.address(0).to_string();
        self.servers[0].cli(&["init", "--advertise", &address]).ok();
        for n in 1..self.servers.len() {
            self.join(n);
        }
    }

    /// One server joins the first one's cluster.
    #[track_caller]
    pub fn join(&self, n: usize) {
        let token = self.servers[0].cli(&["token", "create", "--join"]).ok();
        let (url, address) = (self.url(0), self.address(n).to_string());
        let join = ["join", &url, "--token", token.trim(), "--advertise", &address];
        self.servers[n].cli(&join).ok();
    }
}
