// A C interface that drives plugins as TensorRT does, for ctypes and for the probe.
#pragma once

#include <cstddef>
#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// An input or output. A size of -1 is dynamic; `min` and `max` are the profile's.
struct HarnessTensor {
    int32_t type;
    int32_t format;
    int32_t rank;
    int64_t shape[8];
    int64_t min[8];
    int64_t max[8];
};

struct HarnessField {
    char const* name;
    void const* data;
    int32_t type;
    int32_t length;
};

// Loads a plugin library and gives it a logger; false with a message in the log.
bool harness_open(char const* path);
// The messages since the last call, one per line, each after its severity.
char const* harness_log();
// "name version namespace fields…", one line per creator.
char const* harness_creators();

// Plugins are null where the creator, the clone or the attachment failed.
void* harness_create(char const* op, char const* op_namespace, char const* node,
                     HarnessField const* fields, int32_t count, int32_t phase);
void* harness_clone(void* plugin);
void* harness_attach(void* plugin);
void harness_destroy(void* plugin);

int32_t harness_outputs(void* plugin);
int32_t harness_output_types(
    void* plugin, int32_t const* in, int32_t inputs, int32_t* out, int32_t outputs);
// "0.1 12, 2.0": each output's sizes, INPUT.AXIS where they are an input's; null on failure.
char const* harness_output_shapes(
    void* plugin, HarnessTensor const* in, int32_t inputs, int32_t outputs);
bool harness_supports(
    void* plugin, int32_t position, HarnessTensor const* all, int32_t inputs, int32_t outputs);
int32_t harness_configure(void* plugin, HarnessTensor const* in, int32_t inputs,
                          HarnessTensor const* out, int32_t outputs);
size_t harness_workspace(void* plugin, HarnessTensor const* in, int32_t inputs,
                         HarnessTensor const* out, int32_t outputs);
int32_t harness_shapes(void* plugin, HarnessTensor const* in, int32_t inputs,
                       HarnessTensor const* out, int32_t outputs);
int32_t harness_enqueue(void* plugin, HarnessTensor const* in, int32_t inputs,
                        HarnessTensor const* out, int32_t outputs, void const* const* read,
                        void* const* written, void* workspace, void* stream);
// The fields that an engine stores; their number, -1 on failure. They live as long as the plugin.
int32_t harness_serialize(void* plugin, HarnessField* fields, int32_t room);
}
#pragma GCC visibility pop
