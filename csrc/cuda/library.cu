// What the CUDA library says of itself.
#include "../library.h"

#define TEXT(...) #__VA_ARGS__
#define NAME(...) TEXT(__VA_ARGS__)

#ifdef FASTDL_EMULATED
#define KIND "cuda, emulated: " NAME(FASTDL_EMULATED)
#else
#define KIND "cuda " NAME(FASTDL_ARCHITECTURES)
#endif

FASTDL_EXPORT int32_t fastdl_version() { return fastdl::kVersion; }
FASTDL_EXPORT const char* fastdl_describe() { return KIND; }
