//! Workflows: bounded operations that finish or undo themselves (DESIGN D7).
//!
//! A workflow is a struct: its parameters and what its steps learned. Its steps
//! are an ordered list that reads like a contract:
//!
//! ```ignore
//! impl Workflow for VmCreate {
//!     type Services = Services;
//!     const KIND: &'static str = "vm-create";
//!     fn subject(&self) -> String { format!("vm/{}", self.vm) }
//!     fn steps() -> Vec<Step<Self>> {
//!         vec![
//!             Step::without_undo("check-host", VmCreate::check_host),
//!             Step::undoable("make-volumes", VmCreate::make_volumes, VmCreate::delete_volumes).weight(10),
//!             Step::undoable("define", VmCreate::define, VmCreate::undefine),
//!         ]
//!     }
//! }
//! async fn make_volumes(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> { ... }
//! ```
//!
//! What a step may count on, and what it owes:
//!
//! - It runs **at least once**. After a crash, or on another server, it runs again
//!   with the struct as the step before left it. So it is idempotent, and ids it
//!   needs are chosen before it (in the parameters or by an earlier step).
//! - What it changes in the struct is saved when it succeeds, and forgotten when
//!   it fails.
//! - An undo may be asked to undo a step that ran wholly, partly or not at all,
//!   and may run more than once. It ends with nothing of the step left.
//! - A step that fails (or panics) is undone, and so are all before it, newest
//!   first. An undo that fails is tried again until it works.
//! - A [`Step::forward`] step is past the point of no return: it is tried again
//!   until it works, and so are those after it. Cancelling is refused from there.
//! - A [`Step::decisive`] step is the point of no return: its success is never undone,
//!   also if somebody asked to cancel it meanwhile.
//! - What [`Workflows::start`] reserved in its transaction is given back by
//!   [`Workflow::on_undone`], in the transaction that ends the task.
//! - A long step looks at [`StepContext::cancel`] and reports progress.
//!
//! ```text
//!          ok                    ok, last
//!   Run 0 ----> Run 1 ... Run n ----------> Done
//!      | fails, or cancelled | (Run n+1 forward: again until ok)
//!      v                     v
//!   Undo 0 <---- Undo 1 ... Undo n
//!      |   (each again until ok)
//!      v
//!   Failed or Cancelled
//! ```
//!
//! Two records stand for a workflow in the store: the task, which people see and
//! which stays as history, and the workflow record, which is there exactly as
//! long as there is something to do. Every advance compares and swaps the
//! latter. Whoever resumes a workflow raises its epoch first, so that an engine
//! that was taken for dead stops at its next advance.
//!
//! `docs/decisions/0050-workflow-engine.md` says why this is not the crate steno.

mod core;
mod definition;
mod driver;
mod engine;
pub mod faults;
mod history;
mod listener;
mod plan;
mod progress;
mod record;
mod registry;
#[doc(hidden)]
pub mod testing;

pub use definition::{Step, StepBody, StepContext, Workflow};
pub use engine::{CancelError, Options, StartError, Workflows};
pub use history::HistoryLimits;
pub use progress::Progress;
pub use registry::Registry;

#[cfg(test)]
mod tests;
