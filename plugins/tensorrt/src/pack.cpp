#include "pack.h"

#include <dlfcn.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>

#include "text.h"

namespace ssm_export {

std::string pack_path() {
    char const* const chosen = std::getenv("SSM_EXPORT_KERNELS");
    if (chosen != nullptr && *chosen != '\0') {
        return chosen;
    }
    Dl_info info{};
    static char const here = 0;
    if (dladdr(&here, &info) == 0 || info.dli_fname == nullptr) {
        return "kernels.ssmk";
    }
    std::string const library = info.dli_fname;
    size_t const slash = library.rfind('/');
    return (slash == std::string::npos ? "" : library.substr(0, slash + 1)) + "kernels.ssmk";
}

namespace {

// Until the next file is read. read_sections takes a section that is in use as it is, so the next
// node of the graph reads the same file without decompressing any of it.
void keep_in_use(Sections sections) {
    static std::mutex mutex;
    static Sections kept;
    std::lock_guard<std::mutex> const lock(mutex);
    kept.swap(sections);
}

}  // namespace

Sections read_pack(std::string const& path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        if (errno == ENOENT) {
            return {};
        }
        fail(path, " cannot be read: ", std::strerror(errno));
    }
    std::string const bytes((std::istreambuf_iterator<char>(file)), {});
    if (file.bad()) {
        fail(path, " cannot be read: ", std::strerror(errno));
    }
    Sections sections = read_sections(bytes, path);
    keep_in_use(sections);
    return sections;
}

}  // namespace ssm_export
