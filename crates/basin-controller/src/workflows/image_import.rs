//! Imports an image.
//!
//! Reserved at the start: its record (`importing`) and its name.
//!
//! | step  | does                                               | undone by         |
//! |-------|----------------------------------------------------|-------------------|
//! | fetch | reads, checks and stores the content               | deleting the file |
//! | end   | `ready`, with what was found; or the record goes   |                   |

use basin_model::HostId;
use basin_model::image::{Image, ImageContent, ImageState};
use basin_model::keys;
use basin_model::task::Problem;
use basin_storage::{ImportRequest, ImportSource};
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use super::image_delete::forget;
use crate::app::Services;
use crate::app::images::source_words;
use crate::app::nodes::refused;
use crate::intake::reach;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageImport {
    image: Image,
    import: ImportRequest,
    /// The server that was chosen to do it; a file is that server's.
    #[serde(default)]
    host: Option<HostId>,
    /// What the fetch found.
    content: Option<ImageContent>,
}

impl ImageImport {
    pub fn new(image: Image, import: ImportRequest, host: HostId) -> ImageImport {
        ImageImport { image, import, host: Some(host), content: None }
    }

    /// The server to read the source: another one than was chosen, when that does
    /// not reach the datastore any more and the source is not a file there.
    fn reader(&self, cx: &StepContext<Services>) -> Result<HostId, Problem> {
        match (&self.import.source, self.host) {
            (ImportSource::Path { .. }, Some(host)) => Ok(host),
            _ => image_host(&self.image, self.host, cx),
        }
    }

    async fn fetch(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = cx.services.nodes.get(self.reader(cx)?)?;
        let progress = cx.bytes_progress(format!("reading {}", source_words(&self.import.source)));
        let content = node
            .import_image(self.image.datastore, &self.import, progress, cx.cancel.clone())
            .await
            .map_err(refused)?;
        self.content = Some(content);
        Ok(())
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = cx.services.nodes.get(image_host(&self.image, self.host, cx)?)?;
        node.delete_image(self.image.datastore, self.image.id).await.map_err(refused)
    }

    /// What stays of an upload is swept in a day; not worth failing for.
    async fn tidy(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        if let ImportSource::Upload { upload } = &self.import.source {
            let node = cx.services.nodes.get(image_host(&self.image, self.host, cx)?)?;
            let _ = node.discard_upload(self.image.datastore, *upload).await;
        }
        Ok(())
    }
}

/// A server that reaches the image's datastore.
pub(super) fn image_host(
    image: &Image,
    preferred: Option<HostId>,
    cx: &StepContext<Services>,
) -> Result<HostId, Problem> {
    let preferred = preferred.unwrap_or_else(|| cx.services.nodes.local());
    reach::choose(&[image.datastore], preferred, &cx.services.inventory.read())
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
