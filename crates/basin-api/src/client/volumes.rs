//! What can be done with a volume only.

use reqwest::Method;

use super::{Client, ClientError, Resource};
use crate::task::Task;
use crate::volume::{Volume, VolumeGrow};

impl Client {
    pub async fn grow_volume(&self, volume: &str, to: VolumeGrow) -> Result<Task, ClientError> {
        self.json(self.request(Method::POST, &[Volume::PATH, volume, "grow"])?.json(&to)).await
    }
}
