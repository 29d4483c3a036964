//! Sees to it that the images of all resources are on this machine before a clone needs them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use zdap_proto::refusal::chain;

use crate::resource::catalogue::Catalogue;
use crate::runtime::Runtime;

/// Checks the images of the resources now, whenever the resources change and every now and then, and fetches what is
/// missing, with progress in the log.
pub async fn keep_present(runtime: Arc<dyn Runtime>, mut catalogue: watch::Receiver<Arc<Catalogue>>) {
    loop {
        let resources = catalogue.borrow_and_update().resources.clone();
        let images: BTreeSet<_> = resources
            .values()
            .map(|resource| resource.docker.image.clone())
            .collect();
        for image in images {
            ensure(&*runtime, &image).await;
        }
        if let Ok(Err(_)) = tokio::time::timeout(AGAIN, catalogue.changed()).await {
            return;
        }
    }
}

async fn ensure(runtime: &dyn Runtime, image: &str) {
    match runtime.has_image(image).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::info!(image, "the image is not on this machine; fetching it");
            let progress = |step: String| tracing::info!(image, "{step}");
            match runtime.fetch_image(image, &progress).await {
                Ok(()) => tracing::info!(image, "the image is here"),
                Err(error) => tracing::error!(
                    image,
                    error = chain(&error),
                    "the image cannot be fetched; its resources cannot be restored or cloned"
                ),
            }
        }
        Err(error) => tracing::warn!(image, error = chain(&error), "look for the image"),
    }
}

/// An image can be removed, or become available, at any time.
const AGAIN: Duration = Duration::from_secs(600);
