//! What a server does about its member, case by case.

use basin_store::etcd::Member;

use super::{Verdict, peers, verdict};
use crate::etcd::{Beginning, MemberConfig, Peer};

fn config() -> MemberConfig {
    MemberConfig {
        program: "etcd".into(),
        name: "this".to_owned(),
        dir: "/nowhere".into(),
        address: "10.0.0.1".parse().unwrap(),
        client_port: 2379,
        peer_port: 2380,
        tls: None,
        beginning: Beginning::Join { others: Vec::new() },
    }
}

const HERE: &str = "http://10.0.0.1:2380";
const THERE: &str = "http://10.0.0.2:2380";

fn member(id: u64, name: &str, url: &str, learner: bool) -> Member {
    let peer_urls = vec![url.to_owned()];
    Member { id, name: name.to_owned(), peer_urls, client_urls: Vec::new(), learner }
}

#[test]
fn the_list_decides_and_data_serve_one_membership() {
    let check = |mine: Option<Member>, held: Option<u64>, data: bool, expect: Verdict| {
        let mut members = vec![member(7, "other", THERE, false)];
        members.extend(mine.clone());
        let got = verdict(&config(), &members, held, data);
        assert_eq!(got, expect, "{mine:?}, holds {held:?}, data: {data}");
    };
    let votes = || Some(member(1, "this", HERE, false));
    let follows = || Some(member(1, "this", HERE, true));
    let added = || Some(member(1, "", HERE, true));
    let (keep, join) = (Verdict::Keep { id: 1 }, Verdict::Join { id: 1 });

    check(None, None, false, Verdict::None);
    check(None, None, true, Verdict::Leave);
    check(None, Some(1), true, Verdict::Leave);
    check(None, Some(1), false, Verdict::Leave);
    check(votes(), Some(1), true, keep);
    check(votes(), None, true, keep);
    check(follows(), Some(1), true, keep);
    check(added(), None, false, join);
    // Begun, and the daemon was killed, before or after etcd has made its data.
    check(added(), Some(1), false, join);
    check(added(), Some(1), true, keep);
    // Data of an earlier membership.
    check(added(), Some(2), true, join);
    check(added(), None, true, join);
    check(votes(), Some(2), true, Verdict::Lost);
    // It has voted, and does not know any more for what.
    check(votes(), Some(1), false, Verdict::Lost);
    check(votes(), None, false, Verdict::Lost);
    // A server that had this address and is gone.
    check(Some(member(1, "old", HERE, false)), None, false, Verdict::None);
}

#[test]
fn nobody_is_believed_who_lists_nobody() {
    assert_eq!(verdict(&config(), &[], Some(1), true), Verdict::None);
}

#[test]
fn every_other_member_is_named() {
    let members =
        [member(7, "other", THERE, false), member(0xab, "", "u", true), member(1, "", HERE, true)];
    let peer = |name: &str, url: &str| Peer { name: name.to_owned(), url: url.to_owned() };
    assert_eq!(peers(&config(), &members), [peer("other", THERE), peer("ab", "u")]);
}
