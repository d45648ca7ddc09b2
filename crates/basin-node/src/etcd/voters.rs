//! Pure. Which servers have a vote, as etcd's list of members says.

use std::collections::BTreeMap;

use basin_model::HostId;
use basin_store::etcd::Member;

/// Where they answer clients.
pub type Voters = BTreeMap<HostId, Vec<String>>;

/// A member that does not vote yet is nobody that could be asked, or would be missed.
pub fn voters(members: &[Member]) -> Voters {
    let voting = members.iter().filter(|m| !m.learner);
    voting.filter_map(|m| Some((m.name.parse().ok()?, m.client_urls.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_who_votes_counts() {
        let host = |n| HostId::from_uuid(Uuid::from_u128(n));
        let urls = || vec!["https://10.0.0.1:2379".to_owned()];
        let member = |name: String, learner| {
            let (peer_urls, client_urls) = (Vec::new(), urls());
            Member { id: 1, name, peer_urls, client_urls, learner }
        };
        let list = [
            member(host(1).to_string(), false),
            member(host(2).to_string(), true),
            member(String::new(), false),
        ];
        assert_eq!(voters(&list), Voters::from([(host(1), urls())]));
    }
}
