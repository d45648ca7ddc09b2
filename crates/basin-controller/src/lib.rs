//! What happens once in a cluster: HTTP, application, workflows, reconcilers.

pub mod workflow;
