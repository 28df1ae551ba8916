// What a CPU library says of itself.
#include "../library.h"

#define TEXT(x) #x
#define NAME(x) TEXT(x)

FASTDL_EXPORT int32_t fastdl_version() { return fastdl::kVersion; }
FASTDL_EXPORT const char* fastdl_describe() { return "cpu " NAME(FASTDL_CAPABILITY); }
