// Device memory that a plugin keeps between its launches.
#pragma once

#include <cstddef>
#include <vector>

#include "container.h"
#include "driver.h"

namespace ssm_export {

// The persistent buffers of a section in the context that was current when it was made; they are
// zero then, and only kernels write them. Where a section has none, nothing is allocated.
class PersistentMemory {
public:
    // Allocates and waits, so never inside a stream capture of this thread.
    // Throws Error: the driver has no memory, or refuses otherwise.
    explicit PersistentMemory(Section const& section);
    PersistentMemory(PersistentMemory const&) = delete;
    PersistentMemory& operator=(PersistentMemory const&) = delete;
    ~PersistentMemory();

    // The address of the section's buffer of this index.
    CudaAddress address(size_t index) const { return start_ + offsets_.at(index); }

private:
    void clear(Driver const& cuda, size_t bytes) const;

    CudaContext context_ = nullptr;
    CudaAddress start_ = 0;
    std::vector<size_t> offsets_;
};

}  // namespace ssm_export
