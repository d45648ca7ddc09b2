//! The guest goes over: the source does it and is watched, and so is the VM's record. It
//! ends when the target has claimed the VM, or when it is certain that it never will.

use std::collections::BTreeSet;
use std::time::Duration;

use basin_model::VolumeId;
use basin_model::task::Problem;
use basin_node::NodeError;
use basin_node::migration::types::{Begin, POSTCOPY_LOST, Report, Stage};
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use super::{LOOK_EVERY, Standing, VmMigrate, channel, words};
use crate::app::nodes::{FIGURES_WITHIN, refused};
use crate::app::{Services, problems};
use crate::workflow::StepContext;

/// A target that has all of the guest has this long to claim it before it is asked.
const CLAIM_WITHIN: Duration = Duration::from_secs(30);

/// A source that does not answer for so long may be dead: its target is told to give up,
/// unless the guest is there.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// The same once somebody wants the move cancelled.
const SILENT_FOR_CANCELLED: Duration = Duration::from_secs(10);

/// Between two tries of something that is broken.
const PAUSE: Duration = Duration::from_secs(1);

/// The source has no more part in it, for this reason; the target has the last word.
struct Over {
    why: Problem,
    /// The source runs the guest on, for certain.
    stayed: bool,
}

/// What is remembered between two looks.
struct Watch {
    /// When the source last answered.
    answered: Instant,
    /// Since when the source has been done.
    moved: Option<Instant>,
    cancel_sent: bool,
    mended: Option<Instant>,
}

/// The machine that fetched the guest's memory is no more.
struct Lost;

impl VmMigrate {
    pub(super) async fn transfer(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let inventory = &cx.services.inventory;
        let mut changes = inventory.changes();
        if let Some(record) = self.record(cx).await? {
            inventory.at_least(record.revision).await;
        }
        let now = Instant::now();
        let mut watch = Watch { answered: now, moved: None, cancel_sent: false, mended: None };
        loop {
            changes.borrow_and_update();
            match self.seen_standing(cx) {
                Standing::Claimed => return self.follow(cx).await,
                Standing::NotUnderWay => {
                    return Err(problems::broken("somebody else has taken the move back"));
                }
                Standing::UnderWay => {}
            }
            if let Some(over) = self.look(&mut watch, cx).await {
                return self.settle(over, cx).await;
            }
            tokio::select! {
                // Whoever leads no more sees no changes, but is stopped elsewhere.
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn seen_standing(&self, cx: &StepContext<Services>) -> Standing {
        let snapshot = cx.services.inventory.read();
        self.standing(snapshot.vms.get(&self.id()).map(|vm| &vm.value), cx.task)
    }

    /// The guest runs there. After post-copy its source still has a part of its memory, and
    /// the connection may have to be mended: for as long as the source says so.
    async fn follow(&self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if !self.agreed.as_ref().is_some_and(|agreed| agreed.channel.postcopy) {
            return Ok(());
        }
        let now = Instant::now();
        let mut watch = Watch { answered: now, moved: None, cancel_sent: false, mended: None };
        while watch.answered.elapsed() < SILENT_FOR {
            if let Ok(report) = self.ask_source(cx).await {
                watch.answered = Instant::now();
                match report.stage {
                    // The claim may be quicker than the source's own look.
                    Stage::Memory | Stage::Switching | Stage::Postcopy => {}
                    Stage::PostcopyBroken => {
                        if self.mend(&mut watch, cx).await.is_err() {
                            // The owner goes on without: the source need not keep it.
                            let _ = self.tell_source_to_stop(cx).await;
                        }
                    }
                    _ => return Ok(()),
                }
                cx.progress(1.0, words::words(&report));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// One look at the source, and what follows from it.
    async fn look(&self, watch: &mut Watch, cx: &StepContext<Services>) -> Option<Over> {
        let cancelled = cx.cancel.is_cancelled();
        if cancelled && !watch.cancel_sent {
            watch.cancel_sent = self.tell_source_to_stop(cx).await.is_ok();
        }
        let report = match self.ask_source(cx).await {
            Ok(report) => report,
            Err(problem) => return self.silent(&problem, watch, cx),
        };
        watch.answered = Instant::now();
        if report.stage != Stage::Unknown {
            let without = self.agreed.as_ref().map_or(&[][..], |agreed| &agreed.without);
            let words = words::with(words::words(&report), without);
            cx.progress(words::fraction(&report, self.vm.spec.memory), words);
        }
        if !matches!(report.stage, Stage::Moved { .. }) {
            watch.moved = None;
        }
        match &report.stage {
            Stage::Disks | Stage::Memory | Stage::Switching | Stage::Postcopy => None,
            Stage::PostcopyBroken => {
                // What became of it shows once it is claimed.
                let _ = self.mend(watch, cx).await;
                None
            }
            Stage::Moved { .. } => {
                let since = *watch.moved.get_or_insert_with(Instant::now);
                let why = "its target has not taken it on";
                (since.elapsed() > CLAIM_WITHIN).then(|| self.failed(why, false, cx))
            }
            Stage::Unknown if cancelled => Some(Over { why: problems::cancelled(), stayed: false }),
            Stage::Unknown => self.begin(cx).await,
            over => Some(self.ended(over, cx)),
        }
    }

    fn ended(&self, stage: &Stage, cx: &StepContext<Services>) -> Over {
        match stage {
            Stage::Stayed { cancelled: true, .. } if cx.cancel.is_cancelled() => {
                Over { why: problems::cancelled(), stayed: true }
            }
            Stage::Stayed { full, .. } if !full.is_empty() => self.full(full, cx),
            Stage::Stayed { why, .. } => self.failed(why, true, cx),
            Stage::Unclear { why } => self.failed(why, false, cx),
            _ => self.failed("its machine ended while it moved", false, cx),
        }
    }

    /// First, and again when a daemon of the source knows nothing of it: it goes on with
    /// what its QEMU does.
    async fn begin(&self, cx: &StepContext<Services>) -> Option<Over> {
        let (agreed, prepared) = match (&self.agreed, &self.prepared) {
            (Some(agreed), Some(prepared)) => (agreed, prepared.clone()),
            _ => return Some(self.failed("what was prepared for it is lost", false, cx)),
        };
        let begin = Begin {
            vm: self.id(),
            task: cx.task,
            to: self.to,
            prepared,
            key: agreed.key.clone(),
            channel: agreed.channel,
            policy: channel::possible(&self.policy, agreed.channel),
        };
        // It waits until the source has seen the record; that is a matter of seconds.
        let node = cx.services.nodes.get(self.from.host).ok()?;
        match node.migrate_begin(&begin).await {
            Ok(()) => None,
            Err(NodeError(problem)) if is_unreachable(&problem) => None,
            Err(NodeError(problem)) => Some(Over { why: problem, stayed: false }),
        }
    }

    /// The source does not answer. Its QEMU may well go on, and the target claim.
    fn silent(&self, problem: &Problem, watch: &Watch, cx: &StepContext<Services>) -> Option<Over> {
        let name = self.name(self.from.host, cx);
        let limit = match cx.cancel.is_cancelled() {
            true => SILENT_FOR_CANCELLED,
            false => SILENT_FOR,
        };
        let removed = !cx.services.inventory.read().hosts.contains_key(&self.from.host);
        if removed || watch.answered.elapsed() > limit {
            let why = format!("{name}, where it was, does not answer: {}", problem.detail);
            return Some(self.failed(&why, false, cx));
        }
        cx.progress(0.0, format!("waiting for {name} to answer again: {}", problem.detail));
        None
    }

    /// Connects a post-copy again, as often as it takes. An error: nobody wants the rest.
    async fn mend(&self, watch: &mut Watch, cx: &StepContext<Services>) -> Result<(), Lost> {
        if watch.mended.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return Ok(());
        }
        watch.mended = Some(Instant::now());
        let mended = async {
            let target = cx.services.nodes.get(self.to)?;
            let at = target.migrate_listen_again(self.id(), cx.task).await.map_err(refused)?;
            let source = cx.services.nodes.get(self.from.host)?;
            source.migrate_reconnect(self.id(), cx.task, at).await.map_err(refused)
        };
        if let Err(problem) = mended.await {
            let (vm, why) = (&self.vm.meta.name, &problem.detail);
            tracing::warn!(%vm, why, "a post-copy is not connected again yet");
            if problem.code == POSTCOPY_LOST {
                return Err(Lost);
            }
        }
        Ok(())
    }

    /// The target's last word. An error is certain: it will never run the guest.
    async fn settle(&self, over: Over, cx: &StepContext<Services>) -> Result<(), Problem> {
        let target = self.name(self.to, cx);
        if over.stayed {
            // To be taken back; the target is told on the way.
            return Err(over.why);
        }
        loop {
            match self.abort_target(cx).await {
                Ok(true) => return Err(over.why),
                Ok(false) => cx.progress(1.0, format!("{target} takes it on")),
                Err(problem) => {
                    let why = problem.detail;
                    cx.progress(
                        1.0,
                        format!("waiting for {target} to say whether it has it: {why}"),
                    );
                }
            }
            let mut changes = cx.services.inventory.changes();
            let pause = tokio::time::sleep(PAUSE);
            tokio::pin!(pause);
            loop {
                if self.seen_standing(cx) == Standing::Claimed {
                    return self.follow(cx).await;
                }
                tokio::select! {
                    Ok(()) = changes.changed() => {}
                    () = &mut pause => break,
                }
            }
        }
    }

    /// Asks the source how far it is, but not for long.
    async fn ask_source(&self, cx: &StepContext<Services>) -> Result<Report, Problem> {
        let node = cx.services.nodes.get(self.from.host)?;
        let asked = node.migrate_report(self.id(), cx.task);
        self.within(tokio::time::timeout(FIGURES_WITHIN, asked).await, cx)
    }

    pub(super) async fn tell_source_to_stop(
        &self,
        cx: &StepContext<Services>,
    ) -> Result<(), Problem> {
        let node = cx.services.nodes.get(self.from.host)?;
        let told = node.migrate_cancel(self.id(), cx.task);
        self.within(tokio::time::timeout(FIGURES_WITHIN, told).await, cx)
    }

    fn within<T>(
        &self,
        answer: Result<Result<T, NodeError>, Elapsed>,
        cx: &StepContext<Services>,
    ) -> Result<T, Problem> {
        match answer {
            Ok(answer) => answer.map_err(refused),
            Err(_) => Err(problems::silent(&self.name(self.from.host, cx), FIGURES_WITHIN)),
        }
    }

    /// The datastores that its disks were to go to are full.
    fn full(&self, disks: &[VolumeId], cx: &StepContext<Services>) -> Over {
        let stores: BTreeSet<String> = {
            let snapshot = cx.services.inventory.read();
            let to = disks.iter().filter_map(|disk| self.disks.get(disk)).map(|to| to.datastore);
            let name = |id| snapshot.datastores.get(&id).map(|d| d.value.meta.name.to_string());
            to.map(|id| name(id).unwrap_or_else(|| id.to_string())).collect()
        };
        let moved = self.volumes.iter().filter(|volume| disks.contains(&volume.id));
        let moved: Vec<String> = moved.map(|volume| volume.meta.name.to_string()).collect();
        let (from, to) = (self.name(self.from.host, cx), self.name(self.to, cx));
        let stores: Vec<String> = stores.into_iter().collect();
        let why = problems::moved_to_full(&self.vm.meta.name, &from, &to, &moved, &stores);
        Over { why, stayed: true }
    }

    fn failed(&self, why: &str, stayed: bool, cx: &StepContext<Services>) -> Over {
        let (vm, from) = (&self.vm.meta.name, self.name(self.from.host, cx));
        let to = self.name(self.to, cx);
        Over { why: problems::migration_failed(vm, &from, &to, why, stayed), stayed }
    }
}

/// The server was not reached, which says nothing about what it does.
pub(super) fn is_unreachable(problem: &Problem) -> bool {
    matches!(
        problem.code.as_str(),
        "host-unreachable"
            | "host-untrusted"
            | "host-garbled"
            | "host-starting"
            | "shutting-down"
            | "timeout"
    )
}
