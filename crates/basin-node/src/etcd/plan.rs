//! Pure. Which servers should be members of the cluster's etcd: the next single step.
//!
//! One server or two: one voter (two would be worse than one: either's death stops
//! both). Three or four: three. Five or more: five. Stability comes first: a server
//! that is silent keeps its vote until it has been so for long and another can take
//! its place, and nothing is done while a step before has not settled.
//!
//! etcd refuses to add anyone while a voter is down, so the dead one goes first; but
//! a voter that lives and should go makes way only after its replacement has its vote.
//! A dead voter without a replacement stays, unless the others are safer without it:
//! its server may come back with what it holds.

use std::time::Duration;

use basin_model::HostId;
use jiff::Timestamp;

/// A server that may have a member, those first that should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub host: HostId,
    /// `None`: it is heard of.
    pub silent_since: Option<Timestamp>,
    /// `false`: it is to have no vote for good (it is going to be removed, or was
    /// labelled so). Not for maintenance: a vote given up is copies of the state fewer.
    pub willing: bool,
}

/// A member as etcd lists it, and how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub id: u64,
    /// Whose it is; `None`: of no server that is known.
    pub host: Option<HostId>,
    pub learner: bool,
    pub leader: bool,
    /// `None`: it answers. A learner that is not started yet: since it was added.
    pub down_since: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A member is given up, and a learner too, when it was down for so long.
    pub replace_after: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { replace_after: Duration::from_secs(10 * 60) }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    AddLearner(HostId),
    /// Try to: it may have to catch up yet.
    Promote(u64),
    /// Its server, if it lives, stops the member and deletes its data.
    Remove(u64),
    /// From the leader, which is to be removed next.
    MoveLeader(u64),
    /// Look again later.
    Wait,
    /// All is as it should be.
    Settled,
}

/// A step and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub step: Step,
    pub why: String,
}

/// How many voters so many servers have.
pub fn voters_for(servers: usize) -> usize {
    match servers {
        0..=2 => servers.min(1),
        3..=4 => 3,
        _ => 5,
    }
}

/// The next step.
pub fn next(hosts: &[Candidate], members: &[Seen], rules: Rules, now: Timestamp) -> Verdict {
    View { hosts, members, rules, now }.next()
}

struct View<'a> {
    hosts: &'a [Candidate],
    members: &'a [Seen],
    rules: Rules,
    now: Timestamp,
}

fn verdict(step: Step, why: impl Into<String>) -> Verdict {
    Verdict { step, why: why.into() }
}

impl View<'_> {
    fn next(&self) -> Verdict {
        let (voters, up) = (self.voters().count(), self.up());
        if up < quorum(voters) {
            let why = format!("{up} of {voters} voters answer: without a quorum nothing changes");
            return verdict(Step::Wait, why);
        }
        self.learner().or_else(|| self.lost()).unwrap_or_else(|| self.towards(self.target()))
    }

    fn voters(&self) -> impl Iterator<Item = &Seen> {
        self.members.iter().filter(|m| !m.learner)
    }

    fn up(&self) -> usize {
        self.voters().filter(|m| m.down_since.is_none()).count()
    }

    fn candidate(&self, member: &Seen) -> Option<&Candidate> {
        self.hosts.iter().find(|h| Some(h.host) == member.host)
    }

    fn long(&self, since: Option<Timestamp>) -> bool {
        since.is_some_and(|since| {
            let gone = self.now.duration_since(since);
            gone >= jiff::SignedDuration::try_from(self.rules.replace_after)
                .unwrap_or(jiff::SignedDuration::MAX)
        })
    }

    /// Servers that could take a vote now, best first.
    fn spares(&self) -> impl Iterator<Item = &Candidate> {
        let is_member = |host| self.members.iter().any(|m| m.host == Some(host));
        self.hosts
            .iter()
            .filter(move |h| h.willing && h.silent_since.is_none() && !is_member(h.host))
    }

    /// Whether the vote of a member is well where it is.
    fn keeps(&self, voter: &Seen) -> bool {
        self.candidate(voter).is_some_and(|host| host.willing)
    }

    /// How many voters there should be: as many as the servers that vote, or could,
    /// or were heard of not long ago.
    fn target(&self) -> usize {
        let votes = |h: &Candidate| self.voters().any(|m| m.host == Some(h.host));
        let counts = |h: &&Candidate| h.willing && (votes(h) || !self.long(h.silent_since));
        voters_for(self.hosts.iter().filter(counts).count()).max(1)
    }

    /// A learner is a step that was begun: it is finished, or taken back.
    fn learner(&self) -> Option<Verdict> {
        let learner = self.members.iter().find(|m| m.learner)?;
        let Some(host) = self.candidate(learner).filter(|h| h.willing) else {
            return Some(verdict(Step::Remove(learner.id), "its server is to have no member"));
        };
        if self.long(learner.down_since) || self.long(host.silent_since) {
            let why = format!("server {} has not come up as a member", host.host);
            return Some(verdict(Step::Remove(learner.id), why));
        }
        if learner.down_since.is_some() {
            let why = format!("server {} is about to come up as a member", host.host);
            return Some(verdict(Step::Wait, why));
        }
        let why = format!("server {} follows the others, and is to vote", host.host);
        Some(verdict(Step::Promote(learner.id), why))
    }

    /// Voters that are down.
    fn lost(&self) -> Option<Verdict> {
        let down = || self.voters().filter(|m| m.down_since.is_some());
        let first = down().next()?;
        // Of these, one whose server is known to be gone for good comes first.
        let gone = down().find(|m| self.candidate(m).is_none());
        let silent = down().find(|m| self.long(m.down_since));
        let (voter, why) = match (gone, silent) {
            (Some(voter), _) => (voter, "its server was removed from the cluster".to_owned()),
            (None, Some(voter)) => {
                let (voters, up) = (self.voters().count(), self.up());
                let replaced = self.spares().next().is_some();
                // Three that all live bear one more loss; three of four or five do not.
                let safer = up >= 3 && quorum(up) < quorum(voters);
                if !replaced && !safer && voters <= self.target() {
                    let why = "a voter is down, and no other server can take its place";
                    return Some(verdict(Step::Wait, why));
                }
                (voter, format!("it has been down for {} s", self.rules.replace_after.as_secs()))
            }
            (None, None) => {
                let host = first.host.map_or_else(|| "unknown".to_owned(), |h| h.to_string());
                return Some(verdict(Step::Wait, format!("the voter of server {host} is down")));
            }
        };
        Some(self.remove(voter, why))
    }

    /// All voters are up.
    fn towards(&self, target: usize) -> Verdict {
        let kept = self.voters().filter(|m| self.keeps(m)).count();
        let voters = self.voters().count();
        if kept < target
            && let Some(spare) = self.spares().next()
        {
            // Never to an even number that would stay: the way there must be open.
            let reachable = kept + self.spares().count() >= target;
            if reachable {
                let why = format!("{kept} of {target} voters are where they should be");
                return verdict(Step::AddLearner(spare.host), why);
            }
        }
        // Those that should go, then those that are too many; the leader last.
        let foreign = self.voters().filter(|m| !self.keeps(m)).min_by_key(|m| m.leader);
        if let Some(voter) = foreign {
            let gone = self.candidate(voter).is_none();
            let enough = kept >= target || voters > target;
            if (gone && voters > 1) || enough {
                return self.remove(voter, "its server is to have no vote".to_owned());
            }
        }
        if voters > target {
            let place = |m: &&Seen| self.hosts.iter().position(|h| Some(h.host) == m.host);
            let last = self.voters().filter(|m| !m.leader).max_by_key(place);
            if let Some(voter) = last {
                return self.remove(voter, format!("{target} voters are enough"));
            }
        }
        if kept < target {
            let why =
                format!("{kept} of {target} voters are there, and no server can be added now");
            return verdict(Step::Wait, why);
        }
        verdict(Step::Settled, format!("{voters} voters, all answer"))
    }

    fn remove(&self, voter: &Seen, why: String) -> Verdict {
        let left = self.voters().count() - 1;
        let up = self.voters().filter(|m| m.down_since.is_none() && m.id != voter.id).count();
        if left == 0 || up < quorum(left) {
            let why = format!("{why}; but without it {up} of {left} voters would be no quorum");
            return verdict(Step::Wait, why);
        }
        if !voter.leader {
            return verdict(Step::Remove(voter.id), why);
        }
        let heir = self.voters().filter(|m| m.down_since.is_none() && m.id != voter.id);
        match heir.max_by_key(|m| self.keeps(m)) {
            Some(heir) => verdict(Step::MoveLeader(heir.id), format!("{why}, and it leads")),
            None => verdict(Step::Wait, format!("{why}; but nobody else can lead")),
        }
    }
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
