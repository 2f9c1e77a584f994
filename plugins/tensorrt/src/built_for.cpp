// The TensorRT release whose headers the library is built with, as text in the file: library.py, two
// folders up, and `strings` find it without loading anything.
#include <NvInferVersion.h>

#define SSM_EXPORT_QUOTED(value) #value
#define SSM_EXPORT_TEXT(macro) SSM_EXPORT_QUOTED(macro)

// Exported, since the linker drops what nothing refers to.
extern "C" {

extern __attribute__((visibility("default"))) char const ssm_export_built_for[];

char const ssm_export_built_for[] = "ssm_export_plugins built for TensorRT "
    SSM_EXPORT_TEXT(NV_TENSORRT_MAJOR) "." SSM_EXPORT_TEXT(NV_TENSORRT_MINOR) "."
    SSM_EXPORT_TEXT(NV_TENSORRT_PATCH);
}
