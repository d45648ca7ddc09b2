//! Imports an image.
//!
//! Reserved at the start: its record (`importing`) and its name.
//!
//! | step  | does                                               | undone by         |
//! |-------|----------------------------------------------------|-------------------|
//! | fetch | reads, checks and stores the content               | deleting the file |
//! | end   | `ready`, with what was found; or the record goes   |                   |

use std::sync::Arc;

use basin_model::image::{Image, ImageContent, ImageState};
use basin_model::keys;
use basin_model::task::Problem;
use basin_node::NodeApi;
use basin_storage::{ImportRequest, ImportSource};
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use super::image_delete::forget;
use crate::app::Services;
use crate::app::images::source_words;
use crate::app::nodes::refused;
use crate::intake::resolve::not_there;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageImport {
    image: Image,
    import: ImportRequest,
    /// What the fetch found.
    content: Option<ImageContent>,
}

impl ImageImport {
    pub fn new(image: Image, import: ImportRequest) -> ImageImport {
        ImageImport { image, import, content: None }
    }

    async fn fetch(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = datastore_node(&self.image, cx)?;
        let progress = cx.bytes_progress(format!("reading {}", source_words(&self.import.source)));
        let content = node
            .import_image(self.image.datastore, &self.import, progress, cx.cancel.clone())
            .await
            .map_err(refused)?;
        self.content = Some(content);
        Ok(())
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = datastore_node(&self.image, cx)?;
        node.delete_image(self.image.datastore, self.image.id).await.map_err(refused)
    }

    /// What stays of an upload is swept in a day; not worth failing for.
    async fn tidy(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if let ImportSource::Upload { upload } = &self.import.source {
            let node = datastore_node(&self.image, cx)?;
            let _ = node.discard_upload(self.image.datastore, *upload).await;
        }
        Ok(())
    }
}

/// The server that has the image's datastore.
pub(super) fn datastore_node(
    image: &Image,
    cx: &StepContext<Services>,
) -> Result<Arc<dyn NodeApi>, Problem> {
    let host = {
        let snapshot = cx.services.inventory.read();
        snapshot.datastores.get(&image.datastore).map(|d| d.value.host)
    };
    cx.services.nodes.get(host.ok_or_else(|| not_there("datastore", image.datastore))?)
}

impl Workflow for ImageImport {
    type Services = Services;
    const KIND: &'static str = "image-import";

    fn subject(&self) -> String {
        format!("image/{}", self.image.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![
            Step::undoable("fetch", Self::fetch, Self::remove).weight(50),
            Step::without_undo("tidy", Self::tidy),
        ]
    }

    fn on_done(&self) -> TxnBuilder {
        match self.content.clone() {
            Some(content) => {
                let ready = Image { state: ImageState::Ready { content }, ..self.image.clone() };
                TxnBuilder::new().put(keys::image(self.image.id), &ready)
            }
            None => forget(&self.image),
        }
    }

    fn on_undone(&self) -> TxnBuilder {
        forget(&self.image)
    }
}
