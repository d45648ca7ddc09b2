//! Makes a datastore of a directory.
//!
//! Reserved at the start: its record (`preparing`) and its name. Until it is `ready`
//! nothing uses it, and no server opens it but its maker.
//!
//! | step | does                                                  | undone by            |
//! |------|-------------------------------------------------------|----------------------|
//! | make | marks the directory, and opens it, on its maker       | taking the marks off |
//! | end  | `ready`, and every server that may have it opens it; or the record goes | |

use basin_model::datastore::{Datastore, DatastoreState};
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use crate::app::Services;
use crate::app::nodes::refused;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatastoreCreate {
    datastore: Datastore,
}

impl DatastoreCreate {
    pub fn new(datastore: Datastore) -> DatastoreCreate {
        DatastoreCreate { datastore }
    }

    async fn make(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = cx.services.nodes.get(self.datastore.sharing.maker())?;
        node.open_datastore(&self.datastore).await.map_err(refused)?;
        Ok(())
    }

    async fn unmake(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = cx.services.nodes.get(self.datastore.sharing.maker())?;
        node.discard_datastore(&self.datastore).await.map_err(refused)
    }
}

impl Workflow for DatastoreCreate {
    type Services = Services;
    const KIND: &'static str = "datastore-create";

    fn subject(&self) -> String {
        format!("datastore/{}", self.datastore.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::undoable("make", Self::make, Self::unmake)]
    }

    fn on_done(&self) -> TxnBuilder {
        let ready = Datastore { state: DatastoreState::Ready, ..self.datastore.clone() };
        TxnBuilder::new().put(keys::datastore(ready.id), &ready)
    }

    fn on_undone(&self) -> TxnBuilder {
        TxnBuilder::new()
            .delete(keys::datastore(self.datastore.id))
            .delete(Kind::Datastore.name(&self.datastore.meta.name))
            .delete(keys::guard(Kind::Datastore, self.datastore.id))
    }
}
