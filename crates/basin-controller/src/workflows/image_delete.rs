//! Deletes an image. Its record says `deleting` from the start, so nothing begins
//! to use it; from there on it only goes forward.

use basin_model::image::Image;
use basin_model::keys::{self, Kind};
use basin_model::task::Problem;
use basin_store::records::TxnBuilder;
use serde::{Deserialize, Serialize};

use super::image_import::image_host;
use crate::app::Services;
use crate::app::nodes::refused;
use crate::workflow::{Step, StepContext, Workflow};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageDelete {
    image: Image,
}

impl ImageDelete {
    pub fn new(image: Image) -> ImageDelete {
        ImageDelete { image }
    }

    async fn remove(&mut self, cx: &StepContext<Services>) -> Result<(), Problem> {
        let node = cx.services.nodes.get(image_host(&self.image, None, cx)?)?;
        node.delete_image(self.image.datastore, self.image.id).await.map_err(refused)
    }
}

impl Workflow for ImageDelete {
    type Services = Services;
    const KIND: &'static str = "image-delete";

    fn subject(&self) -> String {
        format!("image/{}", self.image.id)
    }

    fn steps() -> Vec<Step<Self>> {
        vec![Step::forward("remove", Self::remove)]
    }

    fn on_done(&self) -> TxnBuilder {
        forget(&self.image)
    }
}

/// What changes in the store when the image is no more.
pub(super) fn forget(image: &Image) -> TxnBuilder {
    TxnBuilder::new()
        .delete(keys::image(image.id))
        .delete(Kind::Image.name(&image.meta.name))
        .delete(keys::guard(Kind::Image, image.id))
}
