//! Single verdicts, and histories of a world that changes between the steps.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const LONG: i64 = 600;

fn host(n: u128) -> HostId {
    HostId::from_uuid(Uuid::from_u128(n))
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

/// Servers by letters: `a` is heard of, `a?` silent for a short time, `a!` for long,
/// `a-` is unwilling. Members too; `*` leads, `+` is a learner. `x` is no server's.
fn check(hosts: &str, members: &str, expect: Step) {
    let since = |word: &str| match word {
        w if w.contains('?') => Some(at(-5)),
        w if w.contains('!') => Some(at(-LONG)),
        _ => None,
    };
    let number = |word: &str| u128::from(word.as_bytes()[0]);
    let hosts: Vec<Candidate> = hosts
        .split_whitespace()
        .map(|w| Candidate {
            host: host(number(w)),
            silent_since: since(w),
            willing: !w.contains('-'),
        })
        .collect();
    let members: Vec<Seen> = members
        .split_whitespace()
        .map(|w| Seen {
            id: number(w) as u64,
            host: Some(host(number(w))).filter(|_| !w.starts_with('x')),
            learner: w.contains('+'),
            leader: w.contains('*'),
            down_since: since(w),
        })
        .collect();
    let verdict = next(&hosts, &members, Rules::default(), at(0));
    assert_eq!(verdict.step, expect, "{}", verdict.why);
    assert!(!verdict.why.is_empty());
}

fn add(letter: u8) -> Step {
    Step::AddLearner(host(u128::from(letter)))
}

fn id(letter: u8) -> u64 {
    u64::from(letter)
}

#[test]
fn a_cluster_grows_by_odd_numbers() {
    check("a", "a*", Step::Settled);
    check("a b", "a*", Step::Settled);
    check("a b c", "a*", add(b'b'));
    check("a b c", "a* b+", Step::Promote(id(b'b')));
    check("a b c", "a* b+?", Step::Wait);
    check("a b c", "a* b", add(b'c'));
    check("a b c d", "a* b c", Step::Settled);
    check("a b c d e", "a* b c", add(b'd'));
    // The third does not answer: two would be worse than one.
    check("a b c?", "a*", Step::Wait);
    check("a b c!", "a*", Step::Settled);
    // It died on the way.
    check("a b c?", "a* b", Step::Wait);
    check("a b c!", "a* b", Step::Remove(id(b'b')));
    check("a b c", "a* b+!", Step::Remove(id(b'b')));
}

#[test]
fn the_dead_are_replaced_in_time_and_only_if_they_can_be() {
    check("a b c? d", "a* b c?", Step::Wait);
    check("a b c! d", "a* b c!", Step::Remove(id(b'c')));
    check("a b c! d", "a* b", add(b'd'));
    check("a b c!", "a* b c!", Step::Wait);
    check("a b c! d?", "a* b c!", Step::Wait);
    // Three of three are safer than three of five.
    check("a b c d! e!", "a* b c d! e!", Step::Remove(id(b'd')));
    check("a b c d! e!", "a* b c e!", Step::Remove(id(b'e')));
    check("a b c d e!", "a* b c d e!", Step::Wait);
    check("a b c? d? e?", "a* b c? d? e?", Step::Wait);
    check("a b! c! d e", "a* b! c!", Step::Wait);
}

#[test]
fn a_server_that_left_makes_way() {
    check("a b d", "a* b c?", Step::Remove(id(b'c')));
    check("a b d", "a b c*", add(b'd'));
    check("a b d", "a b c* d", Step::MoveLeader(id(b'd')));
    check("a b", "a b c*", Step::MoveLeader(id(b'b')));
    check("a b", "a* b c", Step::Remove(id(b'c')));
    check("a b", "a* b", Step::Remove(id(b'b')));
    check("a b c", "a* b c+ x", Step::Promote(id(b'c')));
    check("a b", "a* c+", Step::Remove(id(b'c')));
    check("b", "a*", add(b'b'));
    check("b", "a* b", Step::MoveLeader(id(b'b')));
    check("a b- c d", "a* b c", add(b'd'));
    check("a b- c d", "a* b c d", Step::Remove(id(b'b')));
    check("a b c", "a* b c x", Step::Remove(id(b'x')));
}

/// A world that the plan acts on.
#[derive(Debug, Clone)]
struct World {
    hosts: Vec<Candidate>,
    members: Vec<Seen>,
    now: i64,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Dies(usize),
    Lives(usize),
    Joins,
    Leaves(usize),
    Waits(i64),
}

impl World {
    fn new() -> World {
        let first = Candidate { host: host(1), silent_since: None, willing: true };
        let member =
            Seen { id: 1, host: Some(host(1)), learner: false, leader: true, down_since: None };
        World { hosts: vec![first], members: vec![member], now: 0 }
    }

    fn set(&mut self, which: usize, since: Option<Timestamp>) {
        let count = self.hosts.len();
        let host = &mut self.hosts[which % count];
        host.silent_since = since.map(|s| host.silent_since.unwrap_or(s));
        for member in self.members.iter_mut().filter(|m| m.host == Some(host.host)) {
            member.down_since = since.map(|s| member.down_since.unwrap_or(s));
        }
        self.elect();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dies(which) => self.set(which, Some(at(self.now))),
            Event::Lives(which) => self.set(which, None),
            Event::Joins if self.hosts.len() < 9 => {
                let next = self.hosts.iter().map(|h| h.host.uuid().as_u128()).max().unwrap() + 100;
                let host = host(next + self.now as u128);
                self.hosts.push(Candidate { host, silent_since: None, willing: true });
            }
            Event::Leaves(which) if self.hosts.len() > 1 => {
                self.hosts.remove(which % self.hosts.len());
            }
            Event::Joins | Event::Leaves(_) => (),
            Event::Waits(seconds) => self.now += seconds,
        }
    }

    fn voters(&self) -> Vec<Seen> {
        self.members.iter().filter(|m| !m.learner).copied().collect()
    }

    fn up(&self) -> usize {
        self.voters().iter().filter(|m| m.down_since.is_none()).count()
    }

    fn has_quorum(&self) -> bool {
        self.up() > self.voters().len() / 2
    }

    /// Somebody who is up leads, if there is a quorum.
    fn elect(&mut self) {
        let quorum = self.has_quorum();
        let led = self.members.iter().any(|m| m.leader && m.down_since.is_none());
        if led && quorum {
            return;
        }
        self.members.iter_mut().for_each(|m| m.leader = false);
        let heir = self.members.iter_mut().find(|m| !m.learner && m.down_since.is_none());
        if quorum && let Some(heir) = heir {
            heir.leader = true;
        }
    }

    /// Plans and acts; `false`: there was nothing to do.
    fn step(&mut self) -> bool {
        let verdict = next(&self.hosts, &self.members, Rules::default(), at(self.now));
        let why = format!("{verdict:?} in {self:?}");
        let quorum = self.has_quorum();
        match verdict.step {
            Step::Wait | Step::Settled => return false,
            _ => assert!(quorum, "{why}"),
        }
        match verdict.step {
            Step::AddLearner(host) => {
                assert!(self.members.iter().all(|m| !m.learner && m.host != Some(host)), "{why}");
                assert_eq!(self.up(), self.voters().len(), "etcd refuses it: {why}");
                let candidate = *self.hosts.iter().find(|h| h.host == host).expect("a server");
                let id = self.members.iter().map(|m| m.id).max().unwrap() + 1;
                let (host, down_since) = (Some(host), candidate.silent_since);
                self.members.push(Seen { id, host, learner: true, leader: false, down_since });
            }
            Step::Promote(id) => {
                let member = self.members.iter_mut().find(|m| m.id == id).expect("a member");
                assert!(member.learner && member.down_since.is_none(), "{why}");
                member.learner = false;
            }
            Step::Remove(id) => {
                let gone = *self.members.iter().find(|m| m.id == id).expect("a member");
                assert!(!gone.leader, "{why}");
                self.members.retain(|m| m.id != id);
            }
            Step::MoveLeader(to) => {
                let heir = self.members.iter_mut().find(|m| m.id == to).expect("a member");
                assert!(!heir.learner && heir.down_since.is_none() && !heir.leader, "{why}");
                self.members.iter_mut().for_each(|m| m.leader = m.id == to);
            }
            Step::Wait | Step::Settled => {}
        }
        assert!(self.has_quorum() && !self.voters().is_empty(), "a quorum was lost by {why}");
        true
    }
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0usize..9).prop_map(Event::Dies),
        4 => (0usize..9).prop_map(Event::Lives),
        3 => Just(Event::Joins),
        1 => (0usize..9).prop_map(Event::Leaves),
        4 => (1i64..900).prop_map(Event::Waits),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens between the steps, no step costs the quorum; and once the
    /// world is still and all live, the votes are where they should be, and stay.
    #[test]
    fn no_step_costs_the_quorum_and_all_comes_right(
        history in prop::collection::vec((events(), 0usize..4), 0..60),
    ) {
        let mut world = World::new();
        for (event, steps) in history {
            world.happen(event);
            world.elect();
            for _ in 0..steps {
                world.step();
            }
        }
        // Servers that left for good while they were needed took the quorum with them:
        // that is a case for a restored backup.
        let known = |m: &Seen| world.hosts.iter().any(|h| Some(h.host) == m.host);
        let stuck = world.voters().iter().filter(|m| m.down_since.is_some() && !known(m)).count();
        prop_assume!(world.voters().len() - stuck > world.voters().len() / 2);
        for which in 0..world.hosts.len() {
            world.happen(Event::Lives(which));
        }
        world.happen(Event::Waits(2 * LONG));
        world.elect();
        let mut steps = 0;
        while world.step() {
            steps += 1;
            prop_assert!(steps < 100, "no end: {world:?}");
        }
        let voters = world.voters();
        prop_assert_eq!(voters.len(), voters_for(world.hosts.len()), "{:?}", world);
        prop_assert_eq!(voters.len(), world.members.len(), "a learner was left: {:?}", world);
        let at_home = voters.iter().all(|m| world.hosts.iter().any(|h| Some(h.host) == m.host));
        prop_assert!(at_home, "{world:?}");
        // All that was needed to come here is a few steps, each with a reason.
        prop_assert!(!world.step());
    }

    /// A server that dies and comes back in time changes nothing.
    #[test]
    fn a_short_absence_changes_nothing(count in 1usize..9, which in 0usize..9, gone in 1i64..LONG) {
        let mut world = World::new();
        (1..count).for_each(|_| world.happen(Event::Joins));
        while world.step() {}
        let before = world.members.clone();
        world.happen(Event::Dies(which));
        world.happen(Event::Waits(gone - 1));
        prop_assert!(!world.step(), "{world:?}");
        world.happen(Event::Lives(which));
        prop_assert!(!world.step(), "{world:?}");
        let ids = |members: &[Seen]| members.iter().map(|m| m.id).collect::<Vec<_>>();
        prop_assert_eq!(ids(&world.members), ids(&before));
    }
}
