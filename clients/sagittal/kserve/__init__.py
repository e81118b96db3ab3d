"""An explainer for KServe: serves `:explain` and ModelInfer, and runs each explanation as a job of Sagittal."""
