#include "persistent.h"

#include "text.h"

namespace ssm_export {
namespace {

constexpr size_t kAlignment = 256;
constexpr unsigned kNonBlocking = 1;  // CUstream_flags

}  // namespace

PersistentMemory::PersistentMemory(Section const& section) {
    size_t bytes = 0;
    for (Persistent const& one : section.persistents) {
        offsets_.push_back(bytes);
        bytes += (one.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    if (bytes == 0) {
        return;
    }
    Driver const& cuda = driver();
    RelaxedCapture const relaxed(cuda);
    cuda.check(cuda.current_context(&context_), "the current CUDA context is unknown");
    cuda.check(cuda.allocate(&start_, bytes),
               text(bytes, " bytes of device memory cannot be had"));
    try {
        clear(cuda, bytes);
    } catch (...) {
        cuda.release(start_);
        throw;
    }
}

// On a stream of its own, which neither waits for others nor takes part in a capture.
void PersistentMemory::clear(Driver const& cuda, size_t bytes) const {
    CudaStream stream = nullptr;
    cuda.check(cuda.create_stream(&stream, kNonBlocking), "a stream cannot be made");
    CudaResult const set = cuda.set_bytes(start_, 0, bytes, stream);
    CudaResult const waited = cuda.wait_for_stream(stream);
    cuda.destroy_stream(stream);
    cuda.check(set != 0 ? set : waited, text(bytes, " bytes of device memory cannot be cleared"));
}

PersistentMemory::~PersistentMemory() {
    if (start_ == 0) {
        return;
    }
    // The context, or the whole driver, may be gone already; then so is the memory.
    Driver const& cuda = driver();
    if (cuda.push_context(context_) != 0) {
        return;
    }
    cuda.release(start_);
    CudaContext popped = nullptr;
    cuda.pop_context(&popped);
}

}  // namespace ssm_export
